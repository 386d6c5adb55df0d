"""Measures the rows of a dataset with a model's tokenizer before a fine-tune begins, in a process of its own.

`python -m lorahydra.service.lengths OVERRIDE...` prints what `Lengths` holds, `{"error": one line}` if the data cannot
be tokenized, or nothing if the model cannot be used, which the fine-tune explains better. The tokens stay in the data
cache, where the study finds them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorahydra.data.length_limits import Fit
from lorahydra.errors import DataError, LorahydraError
from lorahydra.service.choices import composed
from lorahydra.service.errors import ConflictError, InvalidError, TooManyError
from lorahydra.service.helpers import end_with_server, run_helper
from lorahydra.service.processes import NICENESS
from lorahydra.utils.files import DATA_CACHE

if TYPE_CHECKING:
    from lorahydra.config.schema import ExperimentConfig

__all__ = ["DROP", "OVERLONG", "TRUNCATE", "Lengths", "Measurer", "require_fit"]

DROP, TRUNCATE = OVERLONG = ("drop", "truncate")
"""What can be done with rows that are too long, as `data.overlong` names it."""
SECONDS = 120
"""Time limit of a measurement; the study itself refuses what was not measured."""
MOST_WAITING = 8
"""Requests that measure, or wait for others that do."""
SECONDS_TO_WAIT = 10
MOST = 256
"""Number of measurements that are kept."""


@dataclass(frozen=True)
class Lengths:
    """How the rows of a dataset fit a model."""

    rows: int
    too_long: int
    """Rows that do not fit."""
    longest: int
    """Tokens of the longest row, request and answer together."""
    limit: int
    """Tokens that a row may have."""
    left_out: dict[str, int]
    """Rows that are left out by `drop` and by `truncate`, which cannot shorten a request."""
    possible: list[str]
    """Which of the two leaves rows for training and validation."""


class Measurer:
    """Measures each dataset with each model once; methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(MOST_WAITING)
        self._known: dict[tuple[str, ...], Lengths | str] = {}

    def measure(self, overrides: Sequence[str], file: str, shown: str, cache: Path) -> Lengths | None:
        """The lengths of the rows of a study; None if they cannot be measured here and now.

        Args:
            overrides: Those of the study.
            file: Path of the dataset's file.
            shown: The user's name of it.
            cache: Folder for rows and tokens, where the study finds them.

        Raises:
            InvalidError: The rows cannot be tokenized; one line says why.
            TooManyError: Too many requests wait for it.
        """
        key = tuple(override for override in overrides if not override.startswith(("hydra", "judge", "search")))
        known = self._known.get(key)
        if known is None:
            known = self._measured(key, cache)
        if isinstance(known, str):
            raise InvalidError(known.replace(file, shown), "bad_dataset")
        return known

    def _measured(self, key: tuple[str, ...], cache: Path) -> Lengths | str | None:
        # Those that wait hold threads, which all other requests need too.
        if not self._places.acquire(blocking=False):
            raise TooManyError(f"{MOST_WAITING} datasets wait to be measured", SECONDS_TO_WAIT)
        try:
            with self._lock:  # one at a time, so that a second request for the same finds the answer
                known = self._known.get(key) or _ask(key, cache)
                if len(self._known) >= MOST:
                    self._known.clear()
                if known is not None:
                    self._known[key] = known
                return known
        finally:
            self._places.release()


def require_fit(lengths: Lengths | None, overlong: str | None, model: str) -> None:
    """Refuse rows that are too long, unless it was said what to do with them.

    Args:
        lengths: None if they are not known.
        overlong: What to do with such rows; None if nothing was said.
        model: Name of the model.

    Raises:
        ConflictError: There are some; the message says how many, and what can be done.
    """
    if lengths is None or not lengths.too_long or overlong in lengths.possible:
        return
    ways = [f"{name} ({_what(lengths, name)})" for name in lengths.possible]
    none = "too few would be left without them: use other data"
    what = f"set overlong to {' or '.join(ways)}, or use other data" if ways else none
    long = f"{lengths.too_long} of {lengths.rows} rows are too long for {model}"
    raise ConflictError(
        f"{long}: the longest has {lengths.longest} tokens, and {lengths.limit} are allowed; {what}",
        "rows_too_long",
    )


def _what(lengths: Lengths, overlong: str) -> str:
    left_out = lengths.left_out[overlong]
    cut = f"{lengths.too_long - left_out} are shortened, " if overlong == TRUNCATE else ""
    return f"{cut}{left_out} are left out"


def _ask(overrides: Sequence[str], cache: Path) -> Lengths | str | None:
    command = [sys.executable, "-m", "lorahydra.service.lengths", *overrides]
    # Nobody has asked to fetch a model yet.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", DATA_CACHE: str(cache)}
    try:
        answer: dict[str, Any] = json.loads(run_helper(command, SECONDS, env=environment))
    except (subprocess.TimeoutExpired, ValueError):
        return None
    error: str | None = answer.get("error")
    return Lengths(**answer) if error is None else error


def main(overrides: Sequence[str]) -> None:
    """Measure, and print the result as JSON."""
    end_with_server()
    os.nice(NICENESS)
    answer: dict[str, Any] = {}
    with suppress(LorahydraError):
        try:
            answer = vars(_measured(composed(overrides)))
        except DataError as error:
            answer = {"error": " ".join(str(error).split())}
    if answer:
        sys.stdout.write(json.dumps(answer))


def _measured(config: ExperimentConfig) -> Lengths:
    from lorahydra.data import ChatFormat, load_splits
    from lorahydra.data.tokens import encode_split, measure
    from lorahydra.modeling.base import load_context_window, load_tokenizer

    data, model = config.data, config.model
    chat = ChatFormat(
        load_tokenizer(model),
        chat_template=model.chat_template,
        system_prompt=data.system_prompt,
        special_tokens=data.special_tokens,
    )
    window = load_context_window(model)
    fits: dict[str, list[Fit]] = {name: [] for name in OVERLONG}
    for split in load_splits(data, config.seed):
        store = encode_split(split, chat, None)
        room = 0 if split.name == "train" else config.evaluation.max_new_tokens
        for overlong, measured in fits.items():
            measured.append(measure(store, data.max_length, overlong, window, room))
    either = fits[DROP]
    return Lengths(
        rows=sum(len(fit.lengths) for fit in either),
        too_long=sum(len(fit.faults) for fit in either),
        longest=max(int(fit.lengths.max()) for fit in either),
        limit=Fit.limit(data.max_length, window),
        left_out={name: sum(len(fit.lengths) - len(fit.used) for fit in fits[name]) for name in OVERLONG},
        # A study can do without a test split, the last one, but not without the others.
        possible=[name for name in OVERLONG if all(len(fit.learned) for fit in fits[name][:2])],
    )


if __name__ == "__main__":
    main(sys.argv[1:])
