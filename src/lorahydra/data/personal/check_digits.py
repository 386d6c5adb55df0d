"""Check digits of numbers that identify a person or an account; all arguments are digits (and letters in an IBAN)."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["is_card", "is_iban", "is_inn", "is_snils"]

NETWORKS = re.compile(
    r"4\d{15}|(?:5\d|2[2-7]|35|6\d)\d{14}|3[47]\d{13}|3(?:0[0-5]|[68]\d)\d{11}|(?:62|220[0-4])\d{15,17}"
)
"""Beginnings and lengths of payment cards: Visa, Mastercard, Mir, JCB, Discover, Maestro, UnionPay, Amex, Diners."""
INN_WEIGHTS = (3, 7, 2, 4, 10, 3, 5, 9, 4, 6, 8)
FIRST_CHECKED_SNILS = 1_001_998
"""Up to this number, a SNILS has no check digits."""


def is_card(digits: str) -> bool:
    """Whether it is a payment card's number by its network and its last digit (Luhn, ISO/IEC 7812-1)."""
    if not NETWORKS.fullmatch(digits) or len(set(digits)) == 1:
        return False
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0


def is_inn(digits: str) -> bool:
    """Whether it is a Russian tax number: 10 digits of a company, or 12 of a person."""
    if digits.startswith("00"):
        return False
    if len(digits) == 10:
        return _inn_digit(digits, INN_WEIGHTS[2:]) == digits[9]
    persons = len(digits) == 12 and _inn_digit(digits, INN_WEIGHTS[1:]) == digits[10]
    return persons and _inn_digit(digits, INN_WEIGHTS) == digits[11]


def _inn_digit(digits: str, weights: Sequence[int]) -> str:
    total = sum(weight * int(digit) for weight, digit in zip(weights, digits, strict=False))
    return str(total % 11 % 10)


def is_snils(digits: str) -> bool:
    """Whether it is a Russian pension number of 11 digits."""
    if len(digits) != 11 or int(digits[:9]) <= FIRST_CHECKED_SNILS:
        return False
    total = sum(place * int(digit) for place, digit in zip(range(9, 0, -1), digits, strict=False))
    return total % 101 % 100 == int(digits[9:])


def is_iban(text: str) -> bool:
    """Whether it is an international account number without spaces: its remainder by 97 is 1 (ISO 13616)."""
    if not 15 <= len(text) <= 34:
        return False
    return int("".join(str(int(letter, 36)) for letter in text[4:] + text[:4])) % 97 == 1
