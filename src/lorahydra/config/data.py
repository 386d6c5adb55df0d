"""The examples, as `conf/data` sets them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from lorahydra.config.checks import at_least, check_types, not_blank, text_encoding, within
from lorahydra.config.showing import short_repr
from lorahydra.errors import ConfigError

__all__ = ["ColumnsConfig", "DataConfig", "Format", "ReplayConfig", "SpecialTokens"]

MOST_COPIES = 100
"""The largest weight of a training file."""
SpecialTokens = Literal["text", "control"]
Format = Literal[
    "auto", "prompt_completion", "instruction", "question_answer", "messages", "conversations", "preference"
]


@dataclass
class ColumnsConfig:
    """The names that the file has for the columns of the schemes; unset means the scheme's name."""

    prompt: str | None = None
    """Column of the schemes `prompt_completion` and `preference`."""
    completion: str | None = None
    """Column of the scheme `prompt_completion`."""
    instruction: str | None = None
    """Column of the scheme `instruction`."""
    input: str | None = None
    """Column of the schemes `instruction` and `preference`; may be empty in a row."""
    output: str | None = None
    """Column of the scheme `instruction`."""
    question: str | None = None
    """Column of the scheme `question_answer`."""
    answer: str | None = None
    """Column of the scheme `question_answer`."""
    messages: str | None = None
    """Column of the scheme `messages`: a list of `{role, content}`."""
    conversations: str | None = None
    """Column of the scheme `conversations`: a list of `{from, value}`."""
    chosen: str | None = None
    """Column of the scheme `preference`: the preferred answer, or the conversation with it."""
    rejected: str | None = None
    """Column of the scheme `preference`: the other answer, or the conversation with it."""
    system: str | None = None
    """Column of any scheme: the system message."""
    history: str | None = None
    """Column of the schemes `prompt_completion`, `instruction`, `question_answer` and `preference`: earlier turns, a
    list of `[question, answer]`."""
    tools: str | None = None
    """Column of any scheme: tools that may be called, a list of objects or its JSON."""

    __repr__ = short_repr

    def __post_init__(self) -> None:
        check_types("data.columns", self)
        for scheme_name, file_name in self.renamed().items():
            not_blank(f"data.columns.{scheme_name}", file_name)

    def renamed(self) -> dict[str, str]:
        """The names that are set, as `{scheme's name: file's name}`."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass
class ReplayConfig:
    """General rows that are trained on beside your own, so that the model forgets less."""

    file: str | None = None
    """JSONL, JSON, CSV or Parquet file, or a folder that `datasets` saved, with general requests and answers; its
    columns are detected. None by default."""
    share: float = 0.1
    """Share of the training rows that come from it, above 0 and below 1. A hash of row and seed chooses them; they are
    added to the training rows, and are in no other split."""

    __repr__ = short_repr

    def __post_init__(self) -> None:
        check_types("data.replay", self)
        within("data.replay.share", self.share, 0, 1, below=True)
        at_least("data.replay.share", self.share, 0, exclusive=True)
        if self.file is not None:
            not_blank("data.replay.file", self.file)
        if self.file == "demo":
            raise ConfigError(
                "data.replay.file=demo is not allowed: lorahydra ships no general rows to train on; give a file"
            )


@dataclass
class DataConfig:
    """The examples (`conf/data`). Exactly one of `train_file` and `hub_name` names them."""

    train_file: str | list[str] | None = None
    """JSONL, JSON, CSV or Parquet file, or a folder that `datasets` saved; `demo` is the shipped demo dataset. Several
    are a list: `[a.jsonl,b.csv]`."""
    train_weights: list[float] = field(default_factory=list)
    """How often each row of each training file is trained on: 1 (default), 2 for twice, 0.5 for half of the rows, which
    a hash of row and seed chooses. The validation and test splits do not depend on it."""
    mix: dict[str, Any] = field(default_factory=dict)
    """Training files and their weights in one: `{a.jsonl: 1, b.csv: 0.5}` in place of the two keys above."""
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    """General rows against forgetting: `data.replay.file=general.jsonl data.replay.share=0.1`."""
    validation_file: str | None = None
    """File or folder of the validation split; without it the split is made from `train_file`."""
    test_file: str | None = None
    """File or folder of the test split, which only a study's winner sees."""
    hub_name: str | None = None
    """Dataset on the hub, for example `openai/gsm8k`."""
    hub_config: str | None = None
    """Configuration of the hub dataset, for example `main`."""
    hub_revision: str | None = None
    """Branch, tag or commit of the hub dataset."""
    train_split: str = "train"
    """Split of a hub dataset (or saved `DatasetDict`) to train on."""
    validation_split: str | None = None
    """Split of a hub dataset (or saved `DatasetDict`) to validate on; made from the training rows when unset."""
    test_split: str | None = None
    """Split of a hub dataset (or saved `DatasetDict`) to test on."""
    format: Format = "auto"
    """Column scheme; `auto` detects it. `preference`, pairs of answers, is that of `training.method=dpo`."""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    """Names of the columns in the file where they differ from the scheme's, for example `{question: q, answer: a}`."""
    encoding: str = "utf-8"
    """Character encoding of CSV, JSON and JSONL files, for example `windows-1251`. If a file has another encoding, the
    error names the likely one."""
    system_prompt: str | None = None
    """System message put before conversations that have none; an empty one stays empty. When unset, the template
    decides."""
    validation_fraction: float = 0.1
    """Share of rows taken for validation if no validation file or split is given."""
    test_fraction: float = 0.1
    """Share of rows taken for testing if no test file or split is given."""
    special_tokens: SpecialTokens = "text"
    """How to treat text in a message that looks like a control token of the model (`<|im_end|>`): as `text` like any
    other, or as `control`, the token itself, with which rows can end a turn and begin another one."""
    split_version: Literal[1, 2] = 2
    """How rows are divided: 2, or 1 as in older versions, whose splits of small data had random sizes. Studies and runs
    of an older version keep 1 without being told."""
    pii: Literal["warn", "error", "off"] | bool = "warn"
    """What happens if texts hold personal data or secrets (addresses, phone and card numbers, keys, passwords): `warn`
    counts them and names rows, `error` refuses the dataset, `off` does not look for them."""
    max_leakage: float = 0.5
    """Largest share of prompts of a validation or test file or split that may also be in the training rows."""
    max_train_rows: int | None = None
    """Use only the first rows of the training split."""
    max_eval_rows: int | None = None
    """Use only the first rows of the validation (and of the test) split."""
    max_length: int = 1024
    """Longest example in tokens, prompt and answer together."""
    overlong: Literal["error", "drop", "truncate"] = "error"
    """What happens to examples that are longer, or do not fit into the model's context: `error` refuses the dataset,
    whichever split they are in; `drop` leaves them out; `truncate` cuts their end. With `drop` and `truncate` they are
    counted, and a warning says how many there are."""

    __repr__ = short_repr

    def __post_init__(self) -> None:
        if isinstance(self.pii, bool):  # YAML reads `off` so
            self.pii = "warn" if self.pii else "off"
        if self.mix:
            if self.train_file is not None or self.train_weights:
                raise ConfigError(
                    "data.mix names the training files and their weights: leave data.train_file and data.train_weights "
                    "out (data=local)"
                )
            self.train_file, self.train_weights, self.mix = list(self.mix), list(self.mix.values()), {}
        check_types("data", self)
        if (self.train_file is None) == (self.hub_name is None):
            given = "neither is" if self.train_file is None else "both are"
            raise ConfigError(
                f"data.train_file or data.hub_name names the dataset, and {given} set: give one, for example "
                "data=local data.train_file=my.jsonl"
            )
        if self.train_file == []:
            raise ConfigError("data.train_file is an empty list: give at least one file")
        for file in self.train_files:
            not_blank("data.train_file", file)
        for name in ("validation_file", "test_file", "hub_name"):
            value = getattr(self, name)
            if value is not None:
                not_blank(f"data.{name}", value)
        if self.train_weights and len(self.train_weights) != len(self.train_files):
            raise ConfigError(
                f"data.train_weights has {len(self.train_weights)} weights and data.train_file {len(self.train_files)} "
                "files: give one weight for each file"
            )
        for weight in self.train_weights:
            if not 0 < weight <= MOST_COPIES:
                raise ConfigError(
                    f"data.train_weights={self.train_weights} is not allowed: weights must be above 0 and at most "
                    f"{MOST_COPIES}; leave a file out of data.train_file instead of giving it 0"
                )
        text_encoding("data.encoding", self.encoding)
        within("data.validation_fraction", self.validation_fraction, 0, 1, below=True)
        within("data.test_fraction", self.test_fraction, 0, 1, below=True)
        if self.validation_fraction + self.test_fraction >= 1:
            raise ConfigError(
                f"data.validation_fraction={self.validation_fraction} and data.test_fraction={self.test_fraction} "
                "leave nothing to train on: their sum must be below 1"
            )
        within("data.max_leakage", self.max_leakage, 0, 1)
        at_least("data.max_train_rows", self.max_train_rows, 1)
        at_least("data.max_eval_rows", self.max_eval_rows, 1)
        at_least("data.max_length", self.max_length, 8)

    @property
    def train_files(self) -> list[str]:
        """The training files; none with a dataset of the hub."""
        if self.train_file is None:
            return []
        return [self.train_file] if isinstance(self.train_file, str) else list(self.train_file)
