"""Studies: which trials are run, how their results are recorded, and how studies survive the death of a process."""
