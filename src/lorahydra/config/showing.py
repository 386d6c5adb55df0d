"""Configuration as it is shown to people and recorded: short, and without passwords."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from lorahydra.utils.databases import has_password, shown

__all__ = ["HIDDEN", "TRACKING_STORE", "password_in_environment", "short_repr", "without_password", "without_passwords"]

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


def password_in_environment(overrides: Sequence[str]) -> list[str]:
    """The overrides, with a tracking address that has a password moved to an environment variable, which they name.

    Hydra writes overrides to files beside each run, a launcher to those of a cluster's jobs, and everybody on a machine
    can read the command lines of a study's workers. Where the variable does not reach a worker, the address has no
    password, and MLflow takes it from elsewhere, for example from `MLFLOW_TRACKING_PASSWORD` or `~/.pgpass`.
    """
    return [_moved(override) for override in overrides]


def _moved(override: str) -> str:
    key = override.partition("=")[0]
    if without_password(override) == override or "${" in override or key.startswith("~"):
        return override
    from hydra.core.override_parser.overrides_parser import OverridesParser

    [parsed] = OverridesParser.create().parse_overrides([override])
    os.environ[TRACKING_STORE] = uri = str(parsed.value())
    if uri.startswith("http"):
        bare = re.sub("://[^?#]*@", "://", uri).partition("?")[0]
    else:
        bare = shown(uri).replace(":***@", "@")
    # Nothing that would end a quotation.
    return f"{key}='${{oc.env:{TRACKING_STORE},\"{quote(bare, safe=':/?&=%@[]*+')}\"}}'"
