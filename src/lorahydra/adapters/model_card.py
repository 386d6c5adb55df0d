"""The model card of an exported adapter or model: `README.md` as the model hub reads it.

Names, prompts and paths come from users and from other people's files. In the front matter they are values of YAML, in
the text they stand in code spans and code blocks that nothing in them can end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import PurePath
from typing import Any

import yaml

from lorahydra.errors import one_line
from lorahydra.modeling.metadata import AdapterMetadata
from lorahydra.modeling.packaged import PACKAGED, public_name
from lorahydra.names import BASELINE, EVAL, HEADLINES, HYPERPARAMETERS, SCORES, TEST, Score, Tag, scored
from lorahydra.tracking import RecordedRun

__all__ = ["Facts", "model_card"]

COMMIT_TAG = "mlflow.source.git.commit"
PLAIN = re.compile(r"[A-Za-z0-9 :,.+%()-]+")
"""A sentence in which nothing is Markdown."""


@dataclass(frozen=True)
class Facts:
    """What a card tells."""

    title: str
    metadata: AdapterMetadata
    lora: Mapping[str, Any]
    """PEFT's configuration of the adapter."""
    dtype: str
    """Of the exported weights."""
    merged: bool
    run: RecordedRun | None = None
    """Of the trial, where it is known."""
    study: RecordedRun | None = None
    """That it won."""
    has_settings: bool = False
    """Whether `generation_config.json` is there."""
    end_texts: tuple[str, ...] = ()
    """Plain text that ends an answer, where the template has no control token for this."""


def model_card(facts: Facts) -> str:
    """The card as Markdown with YAML front matter."""
    parts = [
        _front_matter(facts),
        f"# {_code(facts.title)}",
        _introduction(facts),
        *_use(facts),
        *_scores(facts),
        *_data(facts),
        *_hyperparameters(facts),
        *_provenance(facts),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(facts: Facts) -> str:
    values = {
        "base_model": one_line(_public(facts.metadata.model.name_or_path)),
        "base_model_relation": "finetune" if facts.merged else "adapter",
        "library_name": "transformers" if facts.merged else "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "lorahydra", *([] if facts.merged else ["peft"])],
    }
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)}---"


def _introduction(facts: Facts) -> str:
    base, digest = facts.metadata.model, facts.metadata.base_digest
    what = "A LoRA adapter for" if not facts.merged else "A LoRA adapter merged into its base model,"
    at = f", revision {_code(base.revision)}" if base.revision else ""
    known = f" ({_code(digest)})" if digest else ""
    return f"{what} {_code(_public(base.name_or_path))}{at}{known}, in {_code(facts.dtype)}."


def _use(facts: Facts) -> Iterator[str]:
    yield "## Use"
    if not facts.merged:
        yield _fenced(
            "lorahydra generate . 'Your question'      # in this folder; --base NAME if the base is elsewhere", "sh"
        )
    snippet = _merged_snippet(facts) if facts.merged else _adapter_snippet(facts)
    if snippet:
        yield _fenced(snippet, "python")
    if facts.metadata.system_prompt:
        yield "It was trained with this system message, which belongs before every conversation:"
        yield _fenced(facts.metadata.system_prompt, "text")
    elif facts.metadata.system_prompt is not None:
        yield "It was trained with an empty system message, which belongs before every conversation."
    if facts.merged:
        yield "The tokenizer has the chat template of the training; answers were scored without sampling."
    elif facts.metadata.model.chat_template is not None:
        yield (
            "The chat template of the training is in `lorahydra.json`; it may differ from the base model's own. "
            "Answers were scored without sampling."
        )


def _messages(facts: Facts) -> str:
    turns = [{"role": "user", "content": "Your question"}]
    if facts.metadata.system_prompt is not None:
        turns.insert(0, {"role": "system", "content": facts.metadata.system_prompt})
    return "\n".join(["messages = [", *(f"    {turn!r}," for turn in turns), "]"])


def _merged_snippet(facts: Facts) -> str:
    return f"""from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder, or its name on the hub
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
{_messages(facts)}
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
output = model.generate(**inputs, max_new_tokens={facts.metadata.max_new_tokens}{_stop_strings(facts)})
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""


def _stop_strings(facts: Facts) -> str:
    return f", stop_strings={list(facts.end_texts)!r}, tokenizer=tokenizer" if facts.end_texts else ""


def _adapter_snippet(facts: Facts) -> str:
    """Nothing for GGUF, which PEFT does not load by itself."""
    base, template = facts.metadata.model, facts.metadata.model.chat_template is not None
    if base.gguf_file or base.name_or_path.endswith(".gguf"):
        return ""
    place = "  # the folder of the base model" if _is_local(base.name_or_path) else ""
    if base.name_or_path in PACKAGED:
        place = f"  # trained on its 4-bit copy: `lorahydra models list` shows the folder of {base.name_or_path}"
    revision = f", revision={base.revision!r}" if base.revision else ""
    dtype = "" if base.dtype == "auto" else f", dtype={base.dtype!r}"
    read = ["import json", "from pathlib import Path", ""] if template else ["from pathlib import Path", ""]
    chosen = ['chat_template = json.loads((folder / "lorahydra.json").read_text("utf-8"))["model"]["chat_template"]']
    given = "chat_template=chat_template, " if template else ""
    if "enable_thinking" in (base.chat_template or ""):
        given += "enable_thinking=False, "
    return "\n".join(
        [
            *read,
            "from peft import PeftModel",
            f"from transformers import AutoModelForCausalLM, AutoTokenizer{', GenerationConfig' * facts.has_settings}",
            "",
            'folder = Path(".")  # this folder',
            f"base = {_public(base.name_or_path)!r}{place}",
            f"tokenizer = AutoTokenizer.from_pretrained(base{revision})",
            f"model = AutoModelForCausalLM.from_pretrained(base{revision}{dtype})",
            "model = PeftModel.from_pretrained(model, str(folder))",
            *(["model.generation_config = GenerationConfig.from_pretrained(folder)"] if facts.has_settings else []),
            *(chosen if template else []),
            _messages(facts),
            "inputs = tokenizer.apply_chat_template(",
            f'    messages, {given}add_generation_prompt=True, return_tensors="pt", return_dict=True',
            ")",
            f"output = model.generate(**inputs, max_new_tokens={facts.metadata.max_new_tokens}, do_sample=False)",
            'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
        ]
    )


def _scores(facts: Facts) -> Iterator[str]:
    tables = []
    if facts.study is not None:
        tables.append(("the test split, which no trial has seen", TEST, facts.study))
    if facts.run is not None:
        tables.append(("the validation split", EVAL, facts.run))
    shown = [part for where, prefix, run in tables for part in _table_of(where, prefix, run)]
    if not shown:
        return
    yield "## Scores"
    yield _meaning(facts.run)
    yield from shown


def _meaning(run: RecordedRun | None) -> str:
    """What the score is made of."""
    judge = None if run is None else run.tags.get(Tag.JUDGE_MODEL)
    if run is None or judge is None:
        return "Without an LLM judge, `combined` is BERTScore F1."
    names = ("evaluation.bertscore_weight", "evaluation.judge_weight")
    weights = [_code(run.params[name]) for name in names if name in run.params]
    text = f"The judge was {_code(judge)}"
    return (
        f"{text}; `combined` weighs BERTScore F1 with {weights[0]} and the judge with {weights[1]}."
        if (len(weights) == 2)
        else f"{text}."
    )


def _table_of(where: str, prefix: str, run: RecordedRun) -> Iterator[str]:
    metrics, said = run.metrics, run.tags.get(Tag.GAIN, "")
    rows = [
        f"| {SCORES[score].title} | {_score(prefix, score, metrics)} | {_score(BASELINE, score, metrics)} |"
        for score in HEADLINES
        if scored(prefix, score) in metrics
    ]
    if not rows:
        return
    yield f"On {where}, beside the untuned base model (baseline), with 95 % intervals:"
    yield "\n".join(["| | tuned | baseline |", "|---|---|---|", *rows])
    if PLAIN.fullmatch(said):
        yield f"{said}."
    elif scored(prefix, Score.GAIN) in metrics:
        # Recorded by an older version.
        yield f"Gain over the untuned model: {_score(prefix, Score.GAIN, metrics, sign='+')}"


def _score(prefix: str, score: Score, metrics: Mapping[str, float], sign: str = "") -> str:
    value = metrics.get(scored(prefix, score))
    if value is None:
        return "–"
    info = SCORES[score]
    ends = [metrics.get(scored(prefix, end)) for end in info.interval or ()]
    texts = [info.text(end, sign) for end in ends if end is not None]
    return info.text(value, sign) + (f" ({texts[0]} to {texts[1]})" if len(texts) == 2 else "")


def _data(facts: Facts) -> Iterator[str]:
    if facts.run is None or not facts.run.datasets:
        return
    rows = [
        f"| {_cell(found.context)} | {_cell(_public(found.source))} | {'–' if found.rows is None else found.rows} "
        f"| {_cell(found.digest)} |"
        for found in facts.run.datasets
    ]
    yield "## Data"
    yield "\n".join(["| used for | source | rows | digest |", "|---|---|---|---|", *rows])


def _hyperparameters(facts: Facts) -> Iterator[str]:
    if facts.run is not None and "lora.r" in facts.run.params:
        params = facts.run.params
        names = [name for name in params if name.startswith("lora.")]
        names += [name for name in HYPERPARAMETERS if name.startswith("training.")]
        values = {name: params[name] for name in [*names, "seed"] if name in params}
    else:
        settings = {f"lora.{name}": value for name, value in facts.lora.items()}
        values = {name: str(settings[name]) for name in HYPERPARAMETERS if name in settings}
    if not values:
        return
    yield "## Hyperparameters"
    yield "\n".join(["| | |", "|---|---|", *(f"| {_cell(name)} | {_cell(value)} |" for name, value in values.items())])


def _provenance(facts: Facts) -> Iterator[str]:
    lines = [f"- lorahydra {version('lorahydra')}"]
    if facts.run is not None:
        commit = facts.run.tags.get(COMMIT_TAG)
        lines += [f"- commit {_code(commit)}"] if commit else []
        lines += [f"- study {_code(facts.run.tags[Tag.STUDY])}"] if Tag.STUDY in facts.run.tags else []
    if facts.metadata.run_id:
        lines.append(f"- MLflow run {_code(facts.metadata.run_id)}")
    yield "## Provenance"
    yield "\n".join(lines)


def _public(place: str) -> str:
    """A name as others may see it: the last part of a path of this machine, a hub id or an address as it is."""
    return PurePath(place).name or place if _is_local(place) else public_name(place)


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
    """The same in a table, where a bar ends the cell unless an odd number of backslashes is before it."""
    return re.sub(r"(\\*)\|", lambda found: found[1] + ("¦" if len(found[1]) % 2 else r"\|"), _code(text))


def _fenced(text: str, language: str) -> str:
    """A code block that holds the text as it is, but for what cannot be printed."""
    ticks = "`" * max(3, _longest_run(text) + 1)
    lines = "\n".join(text.splitlines())
    plain = "".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in lines)
    return f"{ticks}{language}\n{plain}\n{ticks}"


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
