"""Studies: which trials are run, how they are told to the study, and how it survives the death of its processes."""
