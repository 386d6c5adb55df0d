"""The form of a fine-tune: from the browser to the service's parameters, and back into the form."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Depends, Request

from lorahydra.service.errors import InvalidError
from lorahydra.service.lengths import OVERLONG
from lorahydra.service.views import DEMO_DATASET, DatasetChoice, FineTuneParams, JobView

__all__ = ["NO_PARAMS", "ConfigureForm", "Sent", "path_again", "whole_number"]

LONGEST = 300
"""Number of characters of a field that are read."""
NO_PARAMS = FineTuneParams()


async def _sent(request: Request) -> Mapping[str, Any]:
    return await request.form()


Sent = Annotated[Mapping[str, Any], Depends(_sent)]
"""The fields of a form."""


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
    overlong: str = ""
    """What to do with rows that are too long for the model; empty if nothing was chosen."""
    dataset: str | None = None
    """An id, `demo`, or nothing where the page asks for a choice; None if the request had no such field."""
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
    def chosen_overlong(self) -> str | None:
        """What to do with rows that are too long, one of `OVERLONG`; None refuses them."""
        return self.overlong if self.overlong in OVERLONG else None

    @property
    def dataset_id(self) -> DatasetChoice:
        """The chosen dataset.

        Raises:
            InvalidError: None is chosen, because the file that was uploaded last was refused.
        """
        if self.dataset is None or self.dataset == DEMO_DATASET:
            return self.dataset
        number = whole_number(self.dataset)
        if number is None:
            raise InvalidError("no dataset is chosen: choose one, or upload a file", "no_dataset")
        return number


def path_again(job: JobView) -> str:
    """Address of the form, filled in with what a fine-tune was started with."""
    params = job.params
    asked = {
        "project": job.project,
        "dataset": job.dataset or DEMO_DATASET,
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
