"""Say in one line when this Python is too old: `python scripts/check_python.py`. Runs on any Python 3."""

import sys

NEEDED = (3, 11)

if sys.version_info < NEEDED:
    this = ".".join(str(part) for part in sys.version_info[:3])
    needed = ".".join(str(part) for part in NEEDED)
    sys.exit(
        f"lorahydra needs Python {needed} or newer, and this is {this}: run `make PYTHON=/path/to/python{needed} ...`"
    )
