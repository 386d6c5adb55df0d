"""The form of a fine-tune: from the browser to the service's parameters, and back into the form."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from lorahydra.service.views import FineTuneParams, JobView

__all__ = ["NO_PARAMS", "ConfigureForm", "path_again", "whole_number"]

LONGEST = 300
"""Number of characters of a field that are read."""
NO_PARAMS = FineTuneParams()


@dataclass(frozen=True)
class ConfigureForm:
    """The fields as they were sent: text of any kind."""

    project: int | None = None
    name: str = ""
    judge: str = "on"
    judge_model: str = ""
    base_model: str = ""
    other_model: str = ""
    """A hub id; takes precedence over `base_model`."""
    trials: str = str(NO_PARAMS.n_trials)
    dataset: str = ""
    key: str = field(default_factory=lambda: secrets.token_urlsafe(18))
    """Idempotency key, so that pressing the button twice starts one fine-tune."""
    action: str = ""
    """The button that was pressed: `start` or `estimate`."""

    @classmethod
    def read(cls, sent: Mapping[str, Any]) -> ConfigureForm:
        """Make the form from the fields of a request."""
        fields: dict[str, Any] = {
            name: str(sent[name]).strip()[:LONGEST] for name in cls.__dataclass_fields__ if name in sent
        }
        return cls(**fields | {"project": whole_number(fields.get("project"))})

    def params(self) -> FineTuneParams:
        """What is asked for; without a valid number of trials it is 0, which the service refuses."""
        with_judge = self.judge != "off"
        return FineTuneParams(
            use_llm_judge=with_judge,
            judge_model_id=(self.judge_model or None) if with_judge else None,
            base_model_name=self.other_model or self.base_model or None,
            n_trials=whole_number(self.trials) or 0,
        )

    @property
    def dataset_id(self) -> int | None:
        """The chosen dataset; None is the project's newest one, or the demo dataset."""
        return whole_number(self.dataset)


def path_again(job: JobView) -> str:
    """Address of the form, filled in with what a fine-tune was started with."""
    params = job.params
    asked = {
        "project": job.project,
        "dataset": job.dataset or "",
        "judge": "on" if params.use_llm_judge else "off",
        "judge_model": params.judge_model_id or "",
        "base_model": params.base_model_name or "",
        "trials": params.n_trials,
    }
    return f"/configure?{urlencode(asked)}"


def whole_number(text: str | None) -> int | None:
    """The number in a field or an address; None if there is none, or a larger one than a database can hold."""
    text = text.strip() if text else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else None
