"""Configuration as it is shown to people and recorded: short, and without passwords."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from lorahydra.utils.databases import has_password

__all__ = ["HIDDEN", "TRACKING_STORE", "short_repr", "without_password", "without_passwords"]

HIDDEN = "://***"
"""Ends an address in an override that is not recorded."""
TRACKING_STORE = "LORAHYDRA_TRACKING_STORE"
"""Environment variable: the address of MLflow's store, if it was given with a password."""
PASSWORD_IN_ADDRESS = re.compile(
    r"(\w+://[^\s:/'\"]*):[^\s@'\"]+@|([?&;](?:[\w%]*(?:p|%70)assword|token)=)[^\s&'\"]+", re.I
)


def short_repr(config: Any) -> str:
    """The values that differ from the defaults, as `LoraConfig(r=8)`; for dataclasses with dozens of fields."""
    values = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        if value != default:
            values.append(f"{field.name}={value!r}")
    return without_passwords(f"{type(config).__name__}({', '.join(values)})")


def without_passwords(text: str) -> str:
    """A text with the passwords in its addresses left out."""
    return PASSWORD_IN_ADDRESS.sub(lambda match: f"{match[1]}:***@" if match[1] else f"{match[2]}***", text)


def without_password(override: str) -> str:
    """An override as it may be recorded; a tracking address that may hold a secret keeps only its scheme."""
    key, _, value = override.partition("=")
    is_moved = TRACKING_STORE in value
    if key.lstrip("+~") != "tracking.uri" or not (is_moved or "@" in value or "?" in value):
        return override
    scheme = found[1] if (found := re.search(r"([\w+]+)://", value)) else ""
    # The user of a database is a name; that of a server may be a token.
    if scheme.startswith("postgresql") and not is_moved and not has_password(value.strip("'\"")):
        return override
    return f"{key}={scheme}{HIDDEN}"
