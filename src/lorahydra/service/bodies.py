"""What requests of the API contain, as OpenAPI describes it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from lorahydra.config.judge_registry import registered_judges
from lorahydra.service.choices import MODEL_NAME
from lorahydra.service.planning import FEWEST_TRIALS, MOST_TRIALS
from lorahydra.service.views import FineTuneParams

__all__ = ["LARGEST", "EstimateBody", "FineTuneBody", "ProjectBody", "Refusal"]

LARGEST = 2**31 - 1
LINE = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*[^\x00-\x20\x7f-\xa0\s][^\x00-\x1f\x7f-\x9f\u2028\u2029]*$"
"""A text of one line that is not blank."""


def _whole(value: Any) -> Any:
    """Take 5.0 for 5, as JSON Schema does."""
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
    """How to fine-tune; a parameter that is left out takes its quick-start value."""

    use_llm_judge: bool = True
    judge_model_id: Annotated[
        str | None, Field(max_length=64, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", json_schema_extra=_with_judges)
    ] = None
    """Not needed without a judge; if left out, the first judge that is configured."""
    base_model_name: Annotated[str | None, Field(max_length=200, pattern=MODEL_NAME)] = None
    """A packaged model, a folder of the server's models folder, or a hub id."""
    n_trials: Annotated[int, Field(ge=FEWEST_TRIALS, le=MOST_TRIALS), BeforeValidator(_whole)] = 20

    def as_view(self) -> FineTuneParams:
        """The same as the service takes it."""
        return FineTuneParams(**self.model_dump())


class EstimateBody(_Body):
    """What would be started."""

    project_id: Id | None = None
    """The project whose data is used; if left out, the demo dataset."""
    fine_tuning_params: FineTuningParams = Field(default_factory=FineTuningParams)
    dataset_id: Id | None = None


class FineTuneBody(_Body):
    """A new fine-tune."""

    project_id: Id
    fine_tuning_params: FineTuningParams = Field(default_factory=FineTuningParams)
    dataset_id: Id | None = None
    """A dataset of the project; if left out, its newest one, or the demo dataset if it has none."""
    name: Annotated[str, Field(min_length=1, max_length=200, pattern=LINE)] | None = None


class Refusal(BaseModel):
    """Why a request was not fulfilled."""

    detail: str
    """One line for people."""
    code: str
    """One word for programs."""
    report: dict[str, Any] | None = None
    """Only for a dataset that was refused: what `lorahydra data check` says about it."""
