"""What requests of the API contain, as OpenAPI describes it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from lorahydra.config.judge_registry import choosable_judges
from lorahydra.service.choices import MODEL_NAME
from lorahydra.service.planning import FEWEST_TRIALS, MOST_TRIALS
from lorahydra.service.uploads import LONGEST_TEXT
from lorahydra.service.views import FineTuneParams, Reason

__all__ = [
    "LARGEST",
    "MOST_TURNS",
    "EditBody",
    "EstimateBody",
    "FineTuneBody",
    "GenerateBody",
    "MoreBody",
    "ProjectBody",
    "Refusal",
    "Text",
    "Turn",
]

LARGEST = 2**31 - 1
LINE = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*[^\x00-\x20\x7f-\xa0\s][^\x00-\x1f\x7f-\x9f\u2028\u2029]*$"
"""A text of one line that is not blank."""
LINES = r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029]*$"
"""A text of any number of lines."""


def _whole(value: Any) -> Any:
    """Take 5.0 for 5, as JSON Schema does."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Id = Annotated[int, Field(ge=1, le=LARGEST), BeforeValidator(_whole)]
DatasetId = Id | Literal["demo"] | None
"""A dataset of the project, or `demo`; if left out, the project's newest one, or the demo dataset if it has none."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ProjectBody(_Body):
    """A new project."""

    name: Annotated[str, Field(min_length=1, max_length=200, pattern=LINE)]


def _with_judges(schema: dict[str, Any]) -> None:
    schema["anyOf"] = [{"type": "string", "enum": choosable_judges()}, {"type": "null"}]


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
    dataset_id: DatasetId = None


class FineTuneBody(_Body):
    """A new fine-tune."""

    project_id: Id
    fine_tuning_params: FineTuningParams = Field(default_factory=FineTuningParams)
    dataset_id: DatasetId = None
    """A dataset of the project, or `demo`; if left out, its newest one, or the demo dataset if it has none."""
    overlong: Literal["drop", "truncate"] | None = None
    """What to do with rows that are too long for the model: leave them out, or cut their end. If left out, the request
    is refused with the number of such rows."""
    name: Annotated[str, Field(min_length=1, max_length=200, pattern=LINE)] | None = None


class MoreBody(_Body):
    """More trials for a fine-tune that has ended."""

    n_trials: Annotated[int, Field(gt=FEWEST_TRIALS, le=MOST_TRIALS), BeforeValidator(_whole)]
    """Number of trials in all, more than there are."""


class EditBody(_Body):
    """What people call a fine-tune and write about it; what is left out stays as it is."""

    name: Annotated[str, Field(min_length=1, max_length=200, pattern=LINE)] | None = None
    notes: Annotated[str, Field(max_length=LONGEST_TEXT, pattern=LINES)] | None = None
    """Text of several lines; an empty one removes the notes."""


MOST_TURNS = 200
MaxTokens = Annotated[int, Field(ge=1, le=LARGEST), BeforeValidator(_whole)]


def _sendable(text: str) -> str:
    """The text with a replacement character for each half of a character that was cut in two."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


Text = Annotated[str, AfterValidator(_sendable)]


class Turn(_Body):
    """A message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Text


class GenerateBody(_Body):
    """A conversation that a fine-tuned model goes on with."""

    messages: Annotated[list[Turn], Field(min_length=1, max_length=MOST_TURNS)]
    """The last one is not the assistant's."""
    max_new_tokens: MaxTokens | None = None
    """If left out, as in the trials of the fine-tune. An answer is never longer than the model has room for."""
    tuned: bool = True
    """False asks the base model."""
    stream: bool = False
    """Whether the answer is sent as it grows, by server-sent events."""


class Refusal(BaseModel):
    """Why a request was not fulfilled."""

    detail: str
    """One line for people."""
    code: str
    """One word for programs."""
    reason: Reason | None = None
    """Which sentence `detail` is, with what varies in it; left out if that is not known."""
    report: dict[str, Any] | None = None
    """Only for a dataset that was refused: what `lorahydra data check` says about it; its problems also have `code` and
    `params`, and `warning_reasons` are those of its warnings."""
    offer: dict[str, Any] | None = None
    """Only for a dataset that was refused: `encodings` in which its text could be read, with a preview, and its
    `columns`, if they have to be mapped. Send it again with `encoding` or `columns`."""
