"""One trial: it is run, scored, recorded, judged again, reproduced."""
