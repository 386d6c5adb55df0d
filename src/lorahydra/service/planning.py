"""Turns a request into the overrides of its study, and estimates what the study will take."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from lorahydra.config.compose import literal
from lorahydra.config.judge_registry import NO_JUDGE
from lorahydra.config.schema import ExperimentConfig
from lorahydra.modeling.packaged import PACKAGED
from lorahydra.service.choices import LOCAL, Choices, composed, without
from lorahydra.service.errors import InvalidError, Message
from lorahydra.service.guessing import CHARS_PER_TOKEN, guess_trial, judge_seconds
from lorahydra.service.uploads import column_overrides
from lorahydra.service.views import Estimate, FineTuneParams, Reason

__all__ = [
    "DEMO_MODEL",
    "FEWEST_TRIALS",
    "MOST_TRIALS",
    "TRIALS_KEY",
    "Data",
    "demo_data",
    "estimate",
    "overrides_of",
    "rows_of",
    "rows_warning",
    "settled",
]

FEWEST_TRIALS, MOST_TRIALS = 5, 100
TRIALS_KEY = "hydra.sweeper.n_trials"
DEMO_MODEL = "smollm2-135m-instruct"
FEW_TRIALS = 6
"""Up to this number, only the learning rate is searched."""
FEW_TEST_ROWS = 20
"""With fewer test rows, a warning says that the interval of the gain will be wide."""
PROMPT_TOKENS = 650
"""Length of a judge's prompt without the request, the reference and the prediction."""
REPLY_TOKENS = 120
MODEL_KEYS = ("model", "model.name_or_path", "model.revision", "model.gguf_file", "model.chat_template")
"""Keys that describe one model, and mean nothing for another one."""


@dataclass(frozen=True)
class Data:
    """The data of a fine-tune."""

    file: Path | None
    """None is the demo dataset."""
    rows: Mapping[str, int]
    """Number of rows of each split."""
    size: int
    """Size of all rows in bytes."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Scheme column → column of the file, where their names differ."""
    holds_pairs: bool = False
    """Whether its rows are pairs of answers, which are learnt with DPO."""
    overlong: str | None = None
    """What to do with rows that are too long for the model, one of `OVERLONG`; None refuses them."""


def settled(params: FineTuneParams, choices: Choices) -> FineTuneParams:
    """The parameters, checked, with a choice for each one that was left out.

    Raises:
        InvalidError: A parameter is not valid.
        ConflictError: The judge or the model is not set up here.
    """
    if not FEWEST_TRIALS <= params.n_trials <= MOST_TRIALS:
        raise InvalidError(
            f"n_trials is {params.n_trials}, and must be from {FEWEST_TRIALS} to {MOST_TRIALS}", "bad_trials"
        )
    model = params.base_model_name or choices.default_model()
    if params.base_model_name is not None or model in PACKAGED:
        choices.model_path(model)
    judge = (params.judge_model_id or choices.default_judge()) if params.use_llm_judge else None
    if judge is not None:
        choices.judge_config(judge)
    return replace(params, judge_model_id=judge, base_model_name=model)


def overrides_of(params: FineTuneParams, choices: Choices, data: Data) -> list[str]:
    """Overrides of the study, without its name and its stores.

    The server's overrides come last; their judge and their model are only defaults.

    Args:
        params: From `settled`.
        choices: Judges and base models of this server, and its overrides.
        data: What the model is trained on.
    """
    model = str(params.base_model_name)
    if model == DEMO_MODEL and data.file is None:
        chosen = ["experiment=demo"]
    else:
        path = choices.place(model)
        chosen = ["model=local", f"model.name_or_path={literal(path)}"]
        # With a small model the large encoder would be most of the work, and it may not be reachable.
        chosen += ["evaluation=minilm"] if model in PACKAGED else []
        chosen += ["data=demo"] if data.file is None else ["data=local", f"data.train_file={literal(str(data.file))}"]
        chosen += column_overrides(data.columns)
        chosen += ["training.method=dpo"] if data.holds_pairs else []
        chosen += ["search=small"] if params.n_trials <= FEW_TRIALS else []
    chosen += [] if data.overlong is None else [f"data.overlong={data.overlong}"]
    chosen += [f"judge={params.judge_model_id or NO_JUDGE}"]
    # A folder in the models folder is what its name stands for, also if the server's overrides give this name.
    own = () if model == choices.default_model() and choices.place(model) == model else MODEL_KEYS
    always = without(choices.overrides_with(params.judge_model_id), *own)
    # The server's choice of a group replaces ours, because Hydra does not accept two.
    groups = {override.partition("=")[0] for override in always}
    kept = [override for override in chosen if override.partition("=")[0] not in groups]
    if params.judge_model_id == LOCAL and (judge := choices.judge_config(LOCAL).model) is not None:
        always.append(f"judge.model={literal(judge)}")
    return [*kept, *always, f"{TRIALS_KEY}={params.n_trials}"]


def estimate(params: FineTuneParams, choices: Choices, data: Data, measured: float | None) -> Estimate:
    """What a study will take.

    Args:
        params: From `settled`.
        choices: Judges and base models of this server, and its overrides.
        data: What the model is trained on.
        measured: Seconds per trial of an earlier fine-tune with the same model and data; None without one.
    """
    config = composed(overrides_of(params, choices, data))
    rows = data.rows
    calls = _judge_calls(params, config, rows) if config.judge.name != NO_JUDGE else 0
    row_tokens = data.size // CHARS_PER_TOKEN // max(1, sum(rows.values()))
    prompt, reply = calls * (PROMPT_TOKENS + 2 * row_tokens), calls * REPLY_TOKENS
    earlier = Message("trials of an earlier fine-tune like this", "earlier")
    if measured:
        per_trial, basis = measured, earlier
    elif choices.runs_elsewhere:
        said = "the trials run on a cluster, whose speed is not known before a fine-tune like this has run there"
        per_trial, basis = None, Message(said, "elsewhere")
    else:
        per_trial, basis = guess_trial(config, rows, data.size)
    warning = rows_warning(rows["test"])
    seconds = None if per_trial is None else per_trial * params.n_trials
    # A judge on this machine costs time instead of money.
    is_local = params.judge_model_id == LOCAL
    if is_local and seconds is not None and not measured:
        of_judge = judge_seconds(str(config.judge.model), prompt, reply)
        seconds = None if of_judge is None else seconds + of_judge
    priced = is_local or any(config.judge.prices)
    sent, received = (price / len(config.judge.asked) for price in config.judge.prices)
    cost = (prompt * sent + reply * received) / 1e6
    return Estimate(
        trials=params.n_trials,
        train_rows=rows["train"],
        validation_rows=rows["validation"],
        test_rows=rows["test"],
        judge=params.judge_model_id,
        judge_calls=calls,
        judge_prompt_tokens=prompt,
        judge_completion_tokens=reply,
        judge_cost=round(cost, 6) if priced or not calls else None,
        seconds=None if seconds is None else round(seconds, 1),
        basis=basis,
        warnings=[] if warning is None else [warning],
        warning_reasons=[] if warning is None else [Reason(warning.code, warning.values)],
    )


def rows_of(report: Mapping[str, Any]) -> dict[str, int]:
    """Number of rows of each split, from the report of a dataset."""
    found = {split["name"]: int(split["rows"]) for split in report["splits"]}
    return {name: found.get(name, 0) for name in ("train", "validation", "test")}


def rows_warning(rows: int) -> Message | None:
    """Why the test split will say little; None if it has enough rows."""
    if rows == 0:
        return Message("there are no test rows, so it will not be known whether fine-tuning helped", "no_test_rows")
    if rows < FEW_TEST_ROWS:
        text = f"only {rows} test row{'s' if rows > 1 else ''}: a difference to the base model will hardly be clear"
        return Message(text, "few_test_rows", n=rows)
    return None


def _judge_calls(params: FineTuneParams, config: ExperimentConfig, rows: Mapping[str, int]) -> int:
    """At most this many: each trial and the base model on the chosen examples, the race at the end, two on the test.

    With `evaluation.few_shot`, the base model answers twice, without and with examples in the prompt.
    """
    judge = config.judge
    examples = rows["validation"] if judge.n_examples == "all" else min(judge.n_examples, rows["validation"])
    tested = rows["test"] if judge.test_examples == "all" else min(judge.test_examples, rows["test"])
    raced = min(judge.finalists, params.n_trials) * rows["validation"] * judge.repeats
    untuned = 2 if config.evaluation.few_shot else 1
    return int((params.n_trials + untuned) * examples + raced + (1 + untuned) * tested) * len(judge.asked)


@functools.cache
def demo_data() -> Data:
    """The shipped demo dataset."""
    folder = resources.files("lorahydra.data") / "demo"
    content = {name: (folder / f"{name}.jsonl").read_bytes() for name in ("train", "validation", "test")}
    rows = {name: len(lines.splitlines()) for name, lines in content.items()}
    return Data(file=None, rows=rows, size=sum(map(len, content.values())))
