"""Configuration as it is shown to people: short, and without passwords."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

__all__ = ["short_repr", "without_passwords"]

PASSWORD_IN_ADDRESS = re.compile(r"(\w+://[^\s:/@'\"]*):[^\s@/'\"]+@|([?&;](?:password|sslpassword|token)=)[^\s&'\"]+")


def short_repr(config: Any) -> str:
    """The values that differ from the defaults, as `LoraConfig(r=8)`; for dataclasses with dozens of fields."""
    shown = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        if value != default:
            shown.append(f"{field.name}={value!r}")
    return without_passwords(f"{type(config).__name__}({', '.join(shown)})")


def without_passwords(text: str) -> str:
    """A text with the passwords in its addresses left out."""
    return PASSWORD_IN_ADDRESS.sub(lambda match: f"{match[1]}:***@" if match[1] else f"{match[2]}***", text)
