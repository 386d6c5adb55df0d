"""Finds personal data and secrets in a text: patterns, and what tells each kind from ordinary numbers and words.

Numbers without a form of their own count only by their check digits or by a word before them (`ИНН 7707…`), so that a
text about arithmetic is not full of them. Addresses that are reserved for examples (RFC 2606) do not count.

The library `phonenumbers` knows each country's numbers, but takes milliseconds a text, and what it adds to the patterns
here are numbers without country code or any word that says that they are phone numbers.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import NamedTuple

from lorahydra.data.personal.check_digits import is_card, is_iban, is_inn, is_snils

__all__ = ["LABELS", "LIKELY", "SUSPICIOUS", "Kind", "find"]


class Kind(StrEnum):
    """What is found; the values are codes in reports."""

    EMAIL = "email"
    PHONE = "phone"
    CARD = "payment_card"
    INN = "inn"
    SNILS = "snils"
    IBAN = "iban"
    API_KEY = "api_key"
    PRIVATE_KEY = "private_key"
    JWT = "jwt"
    PASSWORD = "password"


LABELS = {
    Kind.EMAIL: "e-mail addresses",
    Kind.PHONE: "phone numbers",
    Kind.CARD: "payment card numbers",
    Kind.INN: "Russian tax numbers (INN)",
    Kind.SNILS: "Russian pension numbers (SNILS)",
    Kind.IBAN: "account numbers (IBAN)",
    Kind.API_KEY: "API keys",
    Kind.PRIVATE_KEY: "private keys",
    Kind.JWT: "JSON web tokens",
    Kind.PASSWORD: "passwords or tokens",
}

WORDS_BEFORE_PHONE = ("тел", "моб", "phone", "tel", "mobile", "cell", "call", "whatsapp", "звони")
SECRET_WORDS = ("pass", "pwd", "secret", "token", "key", "парол", "токен", "ключ", "секрет")
WORD_BEFORE_SECRET = (
    "pass(?:word|wd|phrase|code)?|pwd|secret|token|api[ _-]?key|access[ _-]?key|парол[ьяею]|токен|ключ|секрет"
)
KEY_PREFIXES = (
    r"AKIA|ASIA|AROA|AIDA|gh[opsur]_|github_pat_|glpat-|sk-|[rs]k_live_|AIza|GOCSPX-|ya29\.|xox[abeoprs]-|xapp-|"
    r"hooks\.slack\.com|hf_|\d:AA|npm_|SG\.|y0_|AQVN"
)
SPACE = r"[ \u00a0-]"
SUSPICIOUS = (
    rf"@|(?i:[\[({{] ?(?:at|собака))|\d(?:[ \x{{a0}}.()/-]{{0,2}}\d){{5}}|[A-Z]{{2}}\d{{2}}|{KEY_PREFIXES}|"
    rf"PRIVATE KEY|eyJ|://[^\s/]*:|(?i:bearer|{'|'.join(SECRET_WORDS)})"
)
"""Matches wherever a pattern below does. RE2 looks for it in all texts, in a time that grows with their length only."""
LIKELY = tuple(
    pattern.replace(r"\u00a0", r"\x{a0}")
    for pattern in (
        rf"@|(?i:[\[({{] ?(?:at|собака) ?[\])}}])|[A-Z]{{2}}\d{{2}} ?[A-Z0-9]{{4}}|{KEY_PREFIXES}|PRIVATE KEY|eyJ|"
        r"://[^\s/]*:|(?i:bearer )",
        r"(?:\+|00)[1-9](?:[ \u00a0.()/-]{0,2}\d){7}|\d{11}|"
        rf"\d{{4}}{SPACE}?\d{{4}}{SPACE}?\d{{4}}{SPACE}?\d{{4}}|3\d{{3}}{SPACE}?\d{{6}}{SPACE}?\d{{4}}|"
        rf"\d{{3}}[- ]\d{{3}}[- ]\d{{3}}[- ]\d{{2}}|[3489]\d{{2}}\)?{SPACE}?\d{{3}}{SPACE}?\d{{2}}{SPACE}?\d{{2}}|"
        r"[2-9]\d{2}(?:\) ?|[-.])[1-9]\d{2}[-.]\d{4}",
        r"(?i:инн|inn|tin|tax)[^\d\n]*(?:\d ?){9}\d|"
        rf"(?i:(?:{'|'.join(WORDS_BEFORE_PHONE)})[^\n\d]*\d(?:[ \u00a0()-]{{0,2}}\d){{5}})",
        rf"(?i:(?:{WORD_BEFORE_SECRET})[^\n:=]*(?:[:=—–]| is | это )\s*[\"'`]?[^\s\"'`<>{{}}()\[\],;]{{6}})",
    )
)
"""One of these also matches wherever a pattern below does, and in far fewer texts. They are apart, because RE2 falls
back to a slower way on a pattern with very many states."""
LONG_NUMBER = "\0"
"""Stands for a number of ten digits or more; no text of a dataset contains this character."""
NUMBER = re.compile(r"\d(?:[ \u00a0.()/-]{0,2}\d){9}")

COUNTRY = (
    r"(?:[17]|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]|"
    r"(?:2[1-689]|3[578]|42|5[09]|6[789]|8[058]|9[679])\d)"
)
"""Country codes that are assigned (ITU-T E.164)."""
NATIONAL = re.compile(rf"1[2-9]\d\d[2-9]\d{{6}}|7[3-9]\d{{9}}|(?![17]){COUNTRY}\d{{6,12}}")
ROUND_NUMBER = re.compile(r"\+?\d{1,3}(?:[ \u00a0.]\d{3})*[ \u00a0.]000")
"""A large number with separators of thousands, such as +12 500 000 000."""
RESERVED_DOMAIN = re.compile(r"(?:.*\.)?(?:example(?:\.(?:com|net|org|edu))?|test|invalid|localhost)", re.IGNORECASE)
IMAGE = ("png", "jpg", "jpeg", "gif", "svg", "webp")
"""Ends of names such as `logo@2x.png`."""
PLACEHOLDER = re.compile(r"your|xxxx|\*\*\*|\.\.\.|…|changeme|redacted|[$%{}<>]{2}|^\$", re.IGNORECASE)
TEMPLATE_PASSWORDS = ("password", "passwd", "pass", "pwd", "secret", "token", "пароль")
CHARACTERS = (r"[a-zа-яё]", r"[A-ZА-ЯЁ]", r"\d", r"[!@#$%^&*?+=~|]")
CODE = re.compile(r"[A-Za-z_]\w*(?:(?:\.|::|->)[A-Za-z_]\w*)+")
"""An expression of a program in place of a value."""


class Detector(NamedTuple):
    """A pattern of one kind."""

    kind: Kind
    pattern: re.Pattern[str]
    needs: tuple[str, ...] = ()
    """The pattern is tried on texts that hold one of these, in lower case; on all texts if there are none."""
    is_real: Callable[[re.Match[str]], bool] = lambda _: True
    """Whether a match is what it looks like."""


def find(text: str) -> Counter[Kind]:
    """How often each kind occurs in a text; what belongs to two kinds counts as the first of them."""
    taken = bytearray(len(text))
    found: Counter[Kind] = Counter()
    for kind, start, end in _matches(text):
        if not any(taken[start:end]):
            taken[start:end] = b"\1" * (end - start)
            found[kind] += 1
    return found


def _matches(text: str) -> Iterator[tuple[Kind, int, int]]:
    signs = text.lower() + (LONG_NUMBER if NUMBER.search(text) else "")
    for kind, pattern, needs, is_real in DETECTORS:
        if needs and not any(sign in signs for sign in needs):
            continue
        for match in pattern.finditer(text):
            if is_real(match):
                yield kind, *match.span()


def _digits(text: str) -> str:
    return re.sub(r"\D", "", text)


def _is_email(match: re.Match[str]) -> bool:
    name, _, domain = match[0].rpartition("@")
    return (
        name.lower() != "git"
        and domain.rpartition(".")[2].lower() not in IMAGE
        and not RESERVED_DOMAIN.fullmatch(domain)
    )


def _is_international(match: re.Match[str]) -> bool:
    number = _digits(match[0]).removeprefix("00")
    return NATIONAL.fullmatch(number) is not None and not ROUND_NUMBER.fullmatch(match[0])


def _is_russian(match: re.Match[str]) -> bool:
    # Without any separator, only a mobile number is told from other numbers.
    return not match[0].isdigit() or match[0][1] == "9"


def _is_named_phone(match: re.Match[str]) -> bool:
    number = match["number"]
    return (not number.isdigit() or len(number) >= 9) and not ROUND_NUMBER.fullmatch(number)


def _is_iban(match: re.Match[str]) -> bool:
    # A word in capitals may follow.
    parts = match[0].split(" ")
    return any(is_iban("".join(parts[:count])) for count in range(len(parts), 0, -1))


def _is_url_password(match: re.Match[str]) -> bool:
    password = match["password"]
    return password.lower() not in TEMPLATE_PASSWORDS and not PLACEHOLDER.search(password)


def _is_random(match: re.Match[str]) -> bool:
    return any(map(str.isdigit, match[0])) and _entropy(match[0]) > 3


def _is_secret(match: re.Match[str]) -> bool:
    """Whether a value after a word such as `password` was made to be hard to guess."""
    value = match["value"].rstrip(".,:;!?") if match["value"].rstrip(".,:;!?").isalnum() else match["value"]
    if len(value) < 6 or "://" in value or PLACEHOLDER.search(value) or CODE.fullmatch(value):
        return False
    classes = sum(
        re.search(kind, value) is not None for kind in (r"[a-zа-яё]", r"[A-ZА-ЯЁ]", r"\d", r"[!@#$%^&*?+=~|]")
    )
    has_digit, has_letter = re.search(r"\d", value) is not None, re.search(r"[^\W\d_]", value) is not None
    if re.match(r"(?i)pass|pwd|парол", match["word"]):
        # A person chose it.
        strong = (has_digit and has_letter) or classes > 2 or (value.isdigit() and len(value) >= 8)
        return strong and _entropy(value) > 2.2
    long = len(value) >= 16 and has_digit and has_letter and re.fullmatch(r"[\w+/=~-]+", value) is not None
    return (long or (len(value) >= 8 and classes > 2)) and _entropy(value) > 2.7


def _entropy(text: str) -> float:
    """Shannon's entropy of the characters, in bits for each."""
    shares = [count / len(text) for count in Counter(text).values()]
    return -sum(share * math.log2(share) for share in shares)


# In this order: what has been found does not count again as another kind.
DETECTORS = (
    Detector(Kind.PRIVATE_KEY, re.compile(r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"), ("private key",)),
    Detector(Kind.JWT, re.compile(r"(?<![\w-])eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}"), ("eyj",)),
    Detector(
        Kind.API_KEY,
        re.compile(
            r"(?<![A-Za-z0-9])(?:(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{16}(?![A-Za-z0-9])|gh[opsur]_[A-Za-z0-9]{30,}|"
            r"github_pat_\w{22,}|glpat-[\w-]{20,}|(?<!-)sk-[\w-]{20,}|[rs]k_live_[A-Za-z0-9]{16,}|AIza[\w-]{35}|"
            r"GOCSPX-[\w-]{20,}|ya29\.[\w-]{30,}|xox[abeoprs]-[A-Za-z0-9-]{10,}|xapp-[A-Za-z0-9-]{10,}|"
            r"hooks\.slack\.com/services/T\w+/B\w+/\w+|hf_[A-Za-z0-9]{30,}|\d{8,10}:AA[\w-]{33}|npm_[A-Za-z0-9]{36}|"
            r"SG\.[\w-]{20,}\.[\w-]{40,}|y0_[\w-]{30,}|AQVN[\w-]{30,})"
        ),
        (
            *("akia", "asia", "aroa", "aida", "gho_", "ghp_", "ghs_", "ghu_", "ghr_", "github_pat_", "glpat-", "sk-"),
            *("k_live_", "aiza", "gocspx-", "ya29.", "xox", "xapp-", "hooks.slack", "hf_", ":aa", "npm_", "sg."),
            *("y0_", "aqvn"),
        ),
        _is_random,
    ),
    Detector(
        Kind.PASSWORD,
        re.compile(r"(?i)\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@]{0,100}:(?P<password>[^\s/@]{1,200})@(?=[^\s/])"),
        ("://",),
        _is_url_password,
    ),
    Detector(Kind.PASSWORD, re.compile(r"(?i)\bbearer [A-Za-z0-9._~+/-]{20,}=*"), ("bearer",), _is_random),
    Detector(
        Kind.PASSWORD,
        re.compile(
            rf"(?i)(?P<word>{WORD_BEFORE_SECRET})[\"'`]?[^\n:=,;@/]{{0,30}}?(?:=>|[:=—–]| is | это )\s{{0,3}}[\"'`]?"
            r"(?P<value>[^\s\"'`<>{}()\[\],;]{6,200})(?![({\[])"
        ),
        SECRET_WORDS,
        _is_secret,
    ),
    Detector(
        Kind.IBAN,
        re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])"),
        is_real=_is_iban,
    ),
    Detector(
        Kind.CARD,
        re.compile(
            rf"(?<![\w.,+-])(?:\d{{4}}(?P<gap>{SPACE}?)\d{{4}}(?P=gap)\d{{4}}(?P=gap)\d{{4}}|"
            rf"3\d{{3}}{SPACE}?\d{{6}}{SPACE}?\d{{4,5}}|\d{{17,19}})(?!\d)"
        ),
        (LONG_NUMBER,),
        lambda match: is_card(_digits(match[0])),
    ),
    Detector(
        Kind.SNILS,
        re.compile(r"(?<!\d)\d{3}[- ]\d{3}[- ]\d{3}[- ]\d{2}(?!\d)|(?i:снилс|snils)[^\d\n]{0,30}\d{11}(?!\d)"),
        (LONG_NUMBER,),
        lambda match: is_snils(_digits(match[0])),
    ),
    Detector(
        Kind.INN,
        re.compile(
            r"(?i:\b(?:инн|inn|tin|tax(?:payer)?(?: id| number)?))[^\d\n]{0,30}(?:\d ?){9}(?:\d ?\d ?)?\d(?!\d)|"
            r"(?<![\w.,+-])\d{12}(?!\w|[.,]\d)"
        ),
        (LONG_NUMBER,),
        lambda match: is_inn(_digits(match[0])),
    ),
    Detector(
        Kind.PHONE,
        re.compile(r"(?<![\w+.])(?:\+|00)[1-9](?:[ \u00a0.()/-]{0,2}\d){7,14}(?!\d|[.,]\d)"),
        (LONG_NUMBER,),
        _is_international,
    ),
    Detector(
        Kind.PHONE,
        re.compile(
            rf"(?<![\w.,+-])(?:[78]{SPACE}?\(?[3489]\d{{2}}\)?{SPACE}?|"
            rf"\(?[3489]\d{{2}}\)?{SPACE}(?=\d{{3}}{SPACE}\d\d{SPACE}))"
            rf"\d{{3}}{SPACE}?\d{{2}}{SPACE}?\d{{2}}(?!\w|[.,]\d)"
        ),
        (LONG_NUMBER,),
        _is_russian,
    ),
    Detector(
        Kind.PHONE,
        re.compile(r"(?<![\w.,-])(?:1[-. ])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[-.])[1-9]\d{2}[-.]\d{4}(?![\w-])"),
        (LONG_NUMBER,),
    ),
    Detector(
        Kind.PHONE,
        re.compile(
            r"(?i)\b(?:тел|телефон[а-я]{0,3}|моб|мобильн[а-я]{2,3}|phone(?: number)?|tel|telephone|mobile|cell|call|"
            r"whatsapp|(?:по)?звони[а-я]{0,4})\b[^\n\d]{0,20}"
            r"(?P<number>\d(?:[ \u00a0()-]{0,2}\d){5,11})(?!\w|[.,]\d| ?[=*/+])"
        ),
        WORDS_BEFORE_PHONE,
        _is_named_phone,
    ),
    Detector(
        Kind.EMAIL,
        re.compile(r"(?<![\w.+%-])[\w.+%-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?![\w-])"),
        ("@",),
        _is_email,
    ),
    Detector(
        Kind.EMAIL,
        re.compile(
            r"(?i)\b[\w.+-]{1,64} ?[\[({] ?(?:at|собака) ?[\])}] ?[\w-]{1,63}"
            r"(?:\.| ?[\[({] ?(?:dot|точка) ?[\])}] ?)[a-zа-я]{2,}"
        ),
        ("at)", "at]", "at}", "at ", "собака"),
    ),
)
