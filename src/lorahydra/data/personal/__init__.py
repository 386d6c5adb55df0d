"""Personal data and secrets in the texts of a dataset: how many there are and where, never what they are.

- `check_digits`: numbers that prove themselves: payment cards, Russian tax and pension numbers, IBANs.
- `detectors`: patterns of each kind, with what tells them from ordinary text.
- `scanning`: looks through all texts of a source once and keeps the counts in the cache.
"""

from lorahydra.data.personal.scanning import PersonalData, scan

__all__ = ["PersonalData", "scan"]
