"""From what a request asks for to the overrides of a study, and to what it will take."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorahydra.config.compose import literal
from lorahydra.config.judge_registry import NO_JUDGE
from lorahydra.config.schema import ExperimentConfig
from lorahydra.modeling.packaged import PACKAGED, packaged_path
from lorahydra.service.choices import Choices, without
from lorahydra.service.composing import composed
from lorahydra.service.errors import InvalidError
from lorahydra.service.views import Estimate, FineTuneParams

__all__ = ["DEMO_MODEL", "FEWEST_TRIALS", "MOST_TRIALS", "Data", "demo_data", "estimate", "overrides_of", "settled"]

FEWEST_TRIALS, MOST_TRIALS = 5, 100
DEMO_MODEL = "smollm2-135m-instruct"
FEW_TRIALS = 10
"""With so many or fewer, only the learning rate and the rank are searched."""
PROMPT_TOKENS = 650
"""Of a judge's prompt, apart from request, reference and answer."""
REPLY_TOKENS = 120
CHARS_PER_TOKEN = 4
OF_ONE_MODEL = ("model", "model.name_or_path", "model.revision", "model.gguf_file", "model.chat_template")
"""Keys that say which model it is, and nothing about another one."""
FLOPS = {"cpu": 8e10, "cuda": 4e13}
"""Speed that training reaches. For a CPU, of one core with AVX-512: the demo takes 88 s a trial on two of them."""


@dataclass(frozen=True)
class Data:
    """What is known of the data of a job."""

    file: Path | None
    """None is the demo dataset."""
    rows: Mapping[str, int]
    """Of each split."""
    size: int
    """Bytes of all rows."""


def settled(params: FineTuneParams, choices: Choices) -> FineTuneParams:
    """The parameters with a choice for each that was left out, all of them checked.

    Raises:
        InvalidError: One cannot be.
        ConflictError: The judge or the model is not set up here.
    """
    if not FEWEST_TRIALS <= params.n_trials <= MOST_TRIALS:
        raise InvalidError(f"n_trials is from {FEWEST_TRIALS} to {MOST_TRIALS}, and not {params.n_trials}")
    model = params.base_model_name or choices.default_model()
    if params.base_model_name is not None:
        choices.model_path(model)
    judge = (params.judge_model_id or choices.default_judge()) if params.use_llm_judge else None
    if judge is not None:
        choices.judge_config(judge)
    return replace(params, judge_model_id=judge, base_model_name=model)


def overrides_of(params: FineTuneParams, choices: Choices, dataset: Path | None, own: Sequence[str]) -> tuple[str, ...]:
    """Overrides of the study, apart from its name and its stores.

    Args:
        params: Settled ones.
        choices: What is here.
        dataset: File of the dataset; None is the demo dataset.
        own: Those of the server, which come last; its judge and its model are only defaults.
    """
    model = str(params.base_model_name)
    if model == DEMO_MODEL and dataset is None:
        chosen = ["experiment=demo"]
    else:
        path = choices.model_path(model) if params.base_model_name != choices.default_model() else model
        chosen = ["model=local", f"model.name_or_path={literal(path)}"]
        # Offline, and with a small model, the large encoder would be most of the work.
        chosen += ["evaluation=minilm"] if model in PACKAGED else []
        chosen += ["data=demo"] if dataset is None else ["data=local", f"data.train_file={literal(str(dataset))}"]
        chosen += ["search=small"] if params.n_trials <= FEW_TRIALS else []
    chosen += [f"judge={params.judge_model_id or NO_JUDGE}"]
    own = without(own, "judge", *(() if model == choices.default_model() else OF_ONE_MODEL))
    # The server's choice of a group takes the place of this one: Hydra takes no two.
    groups = {override.partition("=")[0] for override in own}
    kept = [override for override in chosen if override.partition("=")[0] not in groups]
    return (*kept, *own, f"hydra.sweeper.n_trials={params.n_trials}")


def estimate(params: FineTuneParams, overrides: Sequence[str], data: Data, measured: float | None) -> Estimate:
    """What a study will take.

    Args:
        params: Settled ones.
        overrides: From `overrides_of`.
        data: What it is made with.
        measured: Seconds per trial in an earlier job of the same model and data; None where there is none.
    """
    config = composed(tuple(overrides))
    rows = {name: data.rows.get(name, 0) for name in ("train", "validation", "test")}
    calls = _judge_calls(params, config, rows) if config.judge.name != NO_JUDGE else 0
    row_tokens = data.size // CHARS_PER_TOKEN // max(1, sum(rows.values()))
    prompt, reply = calls * (PROMPT_TOKENS + 2 * row_tokens), calls * REPLY_TOKENS
    per_trial, basis = (measured, "trials of an earlier fine-tune like this") if measured else _guess(config, data)
    priced = bool(config.judge.prompt_price or config.judge.completion_price)
    cost = (prompt * config.judge.prompt_price + reply * config.judge.completion_price) / 1e6
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
        seconds=None if per_trial is None else round(per_trial * params.n_trials, 1),
        basis=basis,
    )


def _judge_calls(params: FineTuneParams, config: ExperimentConfig, rows: Mapping[str, int]) -> int:
    """Each trial and the untuned model on the chosen examples; finalists on all; winner and untuned on the test."""
    judge = config.judge
    examples = rows["validation"] if judge.n_examples == "all" else min(judge.n_examples, rows["validation"])
    tested = rows["test"] if judge.test_examples == "all" else min(judge.test_examples, rows["test"])
    finalists = min(judge.finalists, params.n_trials) * rows["validation"] * judge.repeats
    return int((params.n_trials + 1) * examples + finalists + 2 * tested)


def _guess(config: ExperimentConfig, data: Data) -> tuple[float | None, str]:
    """Seconds per trial from the number of weights, as a forward and a backward pass cost; and how it was guessed."""
    weights = _weights(config.model.name_or_path)
    if weights is None:
        return None, "nothing is known of the model's size"
    row_tokens = data.size / CHARS_PER_TOKEN / max(1, sum(data.rows.values()))
    trained = row_tokens * data.rows.get("train", 0) * config.training.num_train_epochs
    validation = data.rows.get("validation", 0)
    answers = validation * config.evaluation.max_new_tokens
    device = "cuda" if Path("/proc/driver/nvidia/version").exists() else "cpu"
    speed = FLOPS[device] * (1 if device == "cuda" else os.cpu_count() or 1)
    seconds = weights * (6 * trained + 2 * row_tokens * validation + 4 * answers) / speed + 5
    return seconds, f"a rough guess from {weights / 1e6:.0f} million weights on {device}"


def _weights(name: str) -> float | None:
    """Number of weights: from the files where they are here, else from a name such as Qwen3-0.6B."""
    folder = packaged_path(name) if name in PACKAGED else Path(name)
    if folder is not None and folder.is_dir():
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        return size / 4 if name in PACKAGED else size / 2 or None
    found = re.search(r"(\d+(?:\.\d+)?)([bBmM])(?![a-zA-Z])", name)
    return None if found is None else float(found[1]) * (1e9 if found[2] in "bB" else 1e6)


def demo_data() -> Data:
    """The shipped demo dataset."""
    from importlib import resources

    folder = resources.files("lorahydra.data") / "demo"
    texts: dict[str, Any] = {
        name: (folder / f"{name}.jsonl").read_text("utf-8") for name in ("train", "validation", "test")
    }
    return Data(
        file=None,
        rows={name: len(text.splitlines()) for name, text in texts.items()},
        size=sum(len(text.encode()) for text in texts.values()),
    )
