"""The model card of an exported adapter or model: `README.md` as the model hub reads it.

Names, prompts and paths come from users and from other people's files. In the front matter they are values of YAML; in
the text (`card.md.jinja`) they stand in code spans and code blocks that nothing in them can end.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from lorahydra.errors import one_line
from lorahydra.modeling.metadata import AdapterMetadata
from lorahydra.modeling.packaged import PACKAGED, public_name
from lorahydra.names import (
    BASELINE,
    BERTSCORE,
    COMMIT_TAG,
    EVAL,
    HEADLINES,
    HYPERPARAMETERS,
    JUDGE,
    TEST,
    Score,
    Tag,
    score_info,
    scored,
)
from lorahydra.tracking import RecordedRun
from lorahydra.utils.environment import own_version

__all__ = ["model_card"]

TEMPLATE = Path(__file__).with_name("card.md.jinja")
WEIGHTS = {BERTSCORE: "evaluation.bertscore_weight", JUDGE: "evaluation.judge_weight"}
"""Parameters that hold the weights if `evaluation.weights` is not set."""
NAMES = {BERTSCORE: "BERTScore F1", JUDGE: "the judge"}
PLAIN = re.compile(r"[A-Za-z0-9 :;,.+%()-]+")
"""A sentence without Markdown syntax."""


def model_card(
    title: str,
    metadata: AdapterMetadata,
    *,
    lora: Mapping[str, Any],
    dtype: str,
    merged: bool,
    run: RecordedRun | None = None,
    study: RecordedRun | None = None,
    has_settings: bool = False,
    end_texts: Sequence[str] = (),
    use: str | None = None,
    library: str | None = None,
) -> str:
    """The card as Markdown with YAML front matter.

    Args:
        title: The heading.
        metadata: The adapter's metadata.
        lora: PEFT's configuration of the adapter.
        dtype: Dtype of the exported weights.
        merged: Whether the adapter was merged into its base model.
        run: The trial's run, if the store has it.
        study: The run of the study that the trial has won.
        has_settings: Whether `generation_config.json` lies beside the weights.
        end_texts: Plain text that ends an answer, if the template has no control token for this.
        use: Markdown on how to use it, instead of code for transformers and PEFT.
        library: The program that loads it, if that is neither of these.
    """
    # Imported here because it is slow: everything else that finds an adapter takes less time.
    from huggingface_hub import ModelCard, ModelCardData

    base = metadata.model
    front_matter = ModelCardData(
        base_model=one_line(_public(base.name_or_path)),
        base_model_relation="finetune" if merged else "adapter",
        library_name=library or ("transformers" if merged else "peft"),
        pipeline_tag="text-generation",
        tags=["lora", "lorahydra", *([library] if library else [] if merged else ["peft"])],
    )
    tags, params = ({}, {}) if run is None else (run.tags, run.params)
    card = ModelCard.from_template(
        front_matter,
        str(TEMPLATE),
        title=title,
        metadata=metadata,
        dtype=dtype,
        merged=merged,
        run=run,
        has_settings=has_settings,
        end_texts=list(end_texts),
        use=use,
        base=base,
        is_gguf=bool(base.gguf_file) or base.name_or_path.endswith(".gguf"),
        is_packaged=base.name_or_path in PACKAGED,
        is_local=_is_local(public_name(base.name_or_path)),
        judge=tags.get(Tag.JUDGE_MODEL),
        combined=_combined(params, judged=Tag.JUDGE_MODEL in tags),
        tables=[table for table in _tables(run, study) if table["rows"]],
        hyperparameters=_hyperparameters(run, lora),
        version=own_version(),
        commit=tags.get(COMMIT_TAG),
        study_name=tags.get(Tag.STUDY),
        code=_code,
        cell=_cell,
        fenced=_fenced,
        public=_public,
        repr=repr,
    )
    return f"{card}\n"


def _combined(params: Mapping[str, str], *, judged: bool) -> str:
    """What `combined` consists of, as the end of a sentence; empty if that is not known."""
    prefix = "evaluation.weights."
    weights = {key.removeprefix(prefix): value for key, value in params.items() if key.startswith(prefix)}
    weights = weights or {name: params[key] for name, key in WEIGHTS.items() if key in params}
    if not judged and weights.pop(JUDGE, None) is not None:
        total = math.fsum(map(float, weights.values()))
        weights = {name: f"{float(value) / total:.4g}" for name, value in weights.items()} if total else {}
    names = [NAMES.get(name, name) for name in weights]
    if len(names) < 2:
        return f"is {names[0]}" if names else ""
    *parts, last = (f"{name} with {_code(value)}" for name, value in zip(names, weights.values(), strict=True))
    return f"weighs {', '.join(parts)} and {last}"


def _tables(trial: RecordedRun | None, study: RecordedRun | None) -> Iterator[dict[str, Any]]:
    """Scores on each split, with the gain in a sentence."""
    splits = (("the test split, which no trial has seen", TEST, study), ("the validation split", EVAL, trial))
    for split, prefix, run in splits:
        if run is None:
            continue
        metrics, sentence = run.metrics, run.tags.get(Tag.GAIN, "")
        chosen = dict.fromkeys(key.split(".")[1] for key in run.params if key.startswith("metrics."))
        rows = [
            (score_info(score).title, _score(prefix, score, metrics), _score(BASELINE, score, metrics))
            for score in (*HEADLINES, *chosen)
            if scored(prefix, score) in metrics
        ]
        gain = None
        if PLAIN.fullmatch(sentence):
            gain = f"{sentence}."
        elif scored(prefix, Score.GAIN) in metrics:  # recorded by an older version
            gain = f"Gain over the untuned model: {_score(prefix, Score.GAIN, metrics, sign='+')}"
        more = [run.tags.get(tag, "") for tag in (Tag.FEW_SHOT_GAIN, Tag.FORGETTING)]
        said = [*([gain] if gain else []), *(f"{sentence}." for sentence in more if PLAIN.fullmatch(sentence))]
        gain = " ".join(said) or None
        yield {"split": split, "rows": rows, "gain": gain}


def _score(prefix: str, score: str, metrics: Mapping[str, float], sign: str = "") -> str:
    """A score with its interval, if there is one."""
    value = metrics.get(scored(prefix, score))
    if value is None:
        return "–"
    info = score_info(score)
    ends = [metrics.get(scored(prefix, end)) for end in info.interval or ()]
    texts = [info.text(end, sign) for end in ends if end is not None]
    return info.text(value, sign) + (f" ({texts[0]} to {texts[1]})" if len(texts) == 2 else "")


def _hyperparameters(run: RecordedRun | None, lora: Mapping[str, Any]) -> dict[str, str]:
    """What the adapter was trained with; without a record, what PEFT's configuration says."""
    if run is not None and "lora.r" in (params := run.params):
        names = [name for name in params if name.startswith("lora.")]
        names += [name for name in HYPERPARAMETERS if name.startswith("training.")]
        if params.get("training.method") != "dpo":
            names.remove("training.dpo_beta")
        return {name: params[name] for name in [*names, "seed"] if name in params}
    settings = {f"lora.{name}": value for name, value in lora.items()}
    return {name: str(settings[name]) for name in HYPERPARAMETERS if name in settings}


def _public(place: str) -> str:
    """A model's name as others may see it: only the last part of a path on this machine; other names unchanged."""
    place = public_name(place)
    return PurePath(place).name or place if _is_local(place) else place


def _is_local(place: str) -> bool:
    if place.startswith("hub:") or "://" in place:
        return False
    return place.startswith(("/", ".", "~")) or place.count("/") > 1


def _code(text: str) -> str:
    """A code span that holds the text, in one line."""
    line = one_line(text, 500) or "–"
    ticks = "`" * (_longest_run(line) + 1)
    padding = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{padding}{line}{padding}{ticks}"


def _cell(text: str) -> str:
    """A code span for a table, in which a bar ends the cell unless an odd number of backslashes precedes it."""
    return re.sub(r"(\\*)\|", lambda bar: bar[1] + ("¦" if len(bar[1]) % 2 else r"\|"), _code(text))


def _fenced(text: str, language: str) -> str:
    """A code block that holds the text as it is, except for what cannot be printed."""
    ticks = "`" * max(3, _longest_run(text) + 1)
    lines = "\n".join(text.splitlines())
    plain = "".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in lines)
    return f"{ticks}{language}\n{plain}\n{ticks}"


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
