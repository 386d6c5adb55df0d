"""What requests of the API bring, as OpenAPI describes it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Header, Path, Query
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from lorahydra.config.judge_registry import registered_judges
from lorahydra.service.choices import MODEL_NAME
from lorahydra.service.planning import FEWEST_TRIALS, MOST_TRIALS
from lorahydra.service.rows import MOST
from lorahydra.service.service import LONGEST_LOG
from lorahydra.service.uploads import LONGEST_ENCODING
from lorahydra.service.views import FineTuneParams

__all__ = [
    "EstimateBody",
    "FineTuneBody",
    "IdempotencyKey",
    "Limit",
    "Lines",
    "Number",
    "Offset",
    "ProjectBody",
    "ProjectFilter",
    "Refusal",
    "TextEncoding",
]

LARGEST = 2**31 - 1
LINE = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*[^\x00-\x20\x7f-\xa0\s][^\x00-\x1f\x7f-\x9f\u2028\u2029]*$"
"""A text that is one line and not blank."""

Number = Annotated[int, Path(ge=1, le=LARGEST)]
Limit = Annotated[int, Query(ge=1, le=MOST, description="Entries at a time.")]
Offset = Annotated[int, Query(ge=0, le=LARGEST, description="Entries to skip.")]
Lines = Annotated[int, Query(ge=1, le=LONGEST_LOG, description="Lines from the end.")]
ProjectFilter = Annotated[int | None, Query(ge=1, le=LARGEST, description="Only those of this project.")]
TextEncoding = Annotated[
    str | None,
    Query(
        max_length=LONGEST_ENCODING,
        pattern=r"^[A-Za-z0-9_.-]+$",
        description="Character encoding of a text that is not UTF-8.",
    ),
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[!-~]+$",
        description="The same key with the same body gives the same job.",
    ),
]


def _whole(value: Any) -> Any:
    """JSON does not tell 5.0 from 5, and neither does its schema."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Id = Annotated[int, Field(ge=1, le=LARGEST), BeforeValidator(_whole)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ProjectBody(_Body):
    """A new project."""

    name: Annotated[str, Field(min_length=1, max_length=200, pattern=LINE)]


def _with_judges(schema: dict[str, Any]) -> None:
    schema["anyOf"] = [{"type": "string", "enum": registered_judges()}, {"type": "null"}]


class FineTuningParams(_Body):
    """How to fine-tune; what is left out takes the quick-start value."""

    use_llm_judge: bool = True
    judge_model_id: Annotated[
        str | None, Field(max_length=64, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", json_schema_extra=_with_judges)
    ] = None
    """Not needed without a judge; the first one that is configured when left out."""
    base_model_name: Annotated[str | None, Field(max_length=200, pattern=MODEL_NAME)] = None
    """Packaged model, folder in the server's models folder, or hub id."""
    n_trials: Annotated[int, Field(ge=FEWEST_TRIALS, le=MOST_TRIALS), BeforeValidator(_whole)] = 20

    def as_view(self) -> FineTuneParams:
        """The same for the service."""
        return FineTuneParams(**self.model_dump())


class EstimateBody(_Body):
    """What would be started."""

    project_id: Id | None = None
    """Whose data; the demo dataset when left out."""
    fine_tuning_params: FineTuningParams = Field(default_factory=FineTuningParams)
    dataset_id: Id | None = None


class FineTuneBody(_Body):
    """A new fine-tune."""

    project_id: Id
    fine_tuning_params: FineTuningParams = Field(default_factory=FineTuningParams)
    dataset_id: Id | None = None
    """A dataset of the project; its newest when left out, and the demo dataset where it has none."""
    name: Annotated[str, Field(min_length=1, max_length=200, pattern=LINE)] | None = None


class Refusal(BaseModel):
    """Why a request was not fulfilled."""

    detail: str
    """One line for people."""
    code: str
    """One word for programs."""
    report: dict[str, Any] | None = None
    """Of a dataset that was refused: what `lorahydra data check` found."""
