"""Metrics by name, from files and from other packages."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import lorahydra
from lorahydra.config.compose import compose
from lorahydra.config.metric_registry import METRICS
from lorahydra.errors import ConfigError, MetricError
from lorahydra.metrics.loading import load_metrics

MINE = '''
"""A metric of the user's own."""
def _helper(text):
    return len(text)

def polite(prompts, references, predictions, *, word="please"):
    return [float(word in prediction.lower()) for prediction in predictions]
'''


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    METRICS.unregister("foo")


def loaded(overrides: list[str]) -> Any:
    [metric] = load_metrics(compose(overrides).metrics).values()
    return metric


@pytest.mark.parametrize("chosen", [["metrics=polite"], ["metrics=[polite]"], []])
def test_a_file_is_enough(chosen: list[str], tmp_path: Path) -> None:
    file = tmp_path / "мой metric.py"
    file.write_text(MINE)
    metric = loaded([*chosen, f"metrics.polite.file={file}", "metrics.polite.word=bitte"])
    assert metric.name == "polite"
    assert metric.score(["?"] * 2, ["x"] * 2, ["Bitte!", "please"]).examples == [1.0, 0.0]


def test_a_single_function_may_have_any_name(tmp_path: Path) -> None:
    file = tmp_path / "m.py"
    file.write_text(MINE)
    assert loaded(["metrics=mine", f"metrics.mine.file={file}"]).score([""], [""], ["please"]).examples == [1.0]
    file.write_text("def a(p, r, q): ...\ndef b(p, r, q): ...\n")
    with pytest.raises(ConfigError, match="must define a function with the name mine, or a single function"):
        loaded(["metrics=mine", f"metrics.mine.file={file}"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a Python file"),
        ("import nothing_of_the_kind", "cannot be imported: "),
        ("def (", "cannot be imported"),
    ],
)
def test_a_file_that_cannot_be_used(content: str | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "m.py"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        loaded(["metrics=mine", f"metrics.mine.file={file}"])


def test_registered_and_installed_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    lorahydra.register_metric("foo", lambda prompts, references, predictions: [0.5 for _ in predictions])
    assert loaded(["metrics=foo"]).score([""], [""], [""]).examples == [0.5]
    entry = SimpleNamespace(load=lambda: lambda prompts, references, predictions: [1.0], value="package:bar")
    monkeypatch.setattr(METRICS, "_entries", {"bar": entry})
    assert loaded(["metrics=bar"]).score([""], [""], [""]).examples == [1.0]


@pytest.mark.parametrize("name", ["combined", "bertscore", "judge", "prompt", "file", "a-b", "1a", ""])
def test_names_that_have_another_meaning(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the name of a metric"):
        lorahydra.register_metric(name, lambda *texts: [])


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([0.5], "returned 1 scores for 2 predictions"),
        ([0.5, math.nan], "gave prediction 2 the score nan"),
        ([2.0, 0.0], "gave prediction 1 the score 2.0, not one in 0…1"),
        (None, "must return a list of numbers"),
        (["x", "y"], "must return a list of numbers"),
    ],
)
def test_what_is_not_a_score_is_refused(returned: Any, message: str) -> None:
    lorahydra.register_metric("foo", lambda prompts, references, predictions: returned)
    with pytest.raises(MetricError, match=message):
        loaded(["metrics=foo"]).score([""] * 2, [""] * 2, [""] * 2)


def test_a_metric_that_fails_is_named() -> None:
    lorahydra.register_metric("foo", lambda prompts, references, predictions: predictions[5])
    with pytest.raises(MetricError, match="metric foo fails: IndexError"):
        loaded(["metrics=foo"]).try_out(["a"], ["b"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["metrics=exact"], r"metric 'exact' does not exist \(did you mean exact_match\?\): choose from bleu"),
        (["metrics=exact_match", "metrics.exact_match.bad=1"], "unknown key metrics.exact_match.bad"),
        (["metrics.regex=3"], "metrics.regex=3 is not allowed: give settings by name"),
        (["evaluation.weights={rouge_l: 1}"], "names a metric that is not chosen: add it with metrics=rouge_l"),
        (["evaluation.weights={bertscore: 0.5}"], "must sum to 1, and they sum to 0.5"),
        (["evaluation.weights={bertscore: much}"], "weights.bertscore=much is not allowed: give a number"),
        (["evaluation.weights={bertscore: 1.5, judge: -0.5}"], "it must be from 0 to 1"),
        (["evaluation.weights={judge: 1}"], "gives all weight to the judge: choose one"),
    ],
)
def test_mistakes_in_the_configuration(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_metrics(compose(overrides).metrics)


def test_a_file_is_imported_once_until_it_changes(tmp_path: Path) -> None:
    file, count = tmp_path / "m.py", tmp_path / "count"
    file.write_text(f"with open({str(count)!r}, 'a') as counted:\n    counted.write('x')\n{MINE}")
    for _ in range(3):
        loaded(["metrics=polite", f"metrics.polite.file={file}"])
    assert count.read_text() == "x"
    file.write_text(file.read_text() + "# changed\n")
    loaded(["metrics=polite", f"metrics.polite.file={file}"])
    assert count.read_text() == "xx"
