"""One trial: running, scoring, recording, judging again and reproducing it."""
