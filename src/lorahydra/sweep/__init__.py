"""Studies: which trials to run, what they found, and how a study survives the death of its process."""
