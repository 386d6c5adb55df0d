"""Built-in metrics, each beside its definition written out plainly, on many odd pairs."""

from __future__ import annotations

import json
import random
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import pytest
import sacrebleu

from lorahydra.config.metric_registry import METRICS
from lorahydra.errors import ConfigError, MetricError
from lorahydra.metrics.loading import Metric, MetricScores, load_metrics

WORDS = [
    "the",
    "a",
    "An",
    "кот",
    "Кот,",
    "«да»",
    "1,000",
    "1000.0",
    "-3.5",
    "naïve",
    "ﬁ",
    "猫",
    "don't",
    "x",
    "…",
    "",
    "\u00a0",
    "🙂",
]
ODD = ["", " ", ".", "The", "\n", "«»", "1,234.50", "##", "a" * 300, "да да да нет", "😀😀", "\u0301"]


def pairs(count: int = 500) -> tuple[list[str], list[str]]:
    """Odd texts: empty, in several scripts, with numbers and punctuation; half of the pairs are alike."""
    draws = random.Random(0)

    def text() -> str:
        return draws.choice(ODD) if draws.random() < 0.1 else " ".join(draws.choices(WORDS, k=draws.randint(0, 12)))

    left = [text() for _ in range(count)]
    changed = [" ".join(word for word in one.split(" ") if draws.random() < 0.8) for one in left]
    return left, [same if draws.random() < 0.5 else text() for same in changed]


PREDICTIONS, REFERENCES = pairs()
PROMPTS = [""] * len(PREDICTIONS)


def scores(name: str, **settings: object) -> MetricScores:
    [metric] = load_metrics({name: settings}).values()
    return metric.score(PROMPTS, REFERENCES, PREDICTIONS)


def squad(text: str) -> str:
    """SQuAD's normalisation, with the punctuation of all scripts."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation and unicodedata.category(c)[0] != "P")
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def squad_f1(prediction: str, reference: str) -> float:
    left, right = squad(prediction).split(), squad(reference).split()
    if not left or not right:
        return float(left == right)
    same = sum((Counter(left) & Counter(right)).values())
    if not same:
        return 0.0
    precision, recall = same / len(left), same / len(right)
    return 2 * precision * recall / (precision + recall)


def rouge(prediction: str, reference: str) -> float:
    """ROUGE-L by the table of Lin (2004)."""
    left, right = (re.findall(r"\w+", text.lower()) for text in (prediction, reference))
    row = [0] * (len(right) + 1)
    for word in left:
        row = [
            0,
            *(
                max(before[0] + 1 if word == other else 0, before[1])
                for before, other in zip(pairwise(row), right, strict=True)
            ),
        ]
        for place in range(1, len(row)):
            row[place] = max(row[place], row[place - 1])
    if not row[-1]:
        return 0.0
    precision, recall = row[-1] / len(left), row[-1] / len(right)
    return 2 * precision * recall / (precision + recall)


def bleu(prediction: str, reference: str) -> float:
    return sacrebleu.sentence_bleu(prediction, [reference], use_effective_order=True).score / 100


def chrf(prediction: str, reference: str) -> float:
    return sacrebleu.sentence_chrf(prediction, [reference]).score / 100


DEFINITIONS: dict[str, Callable[[str, str], float]] = {
    "exact_match": lambda prediction, reference: float(squad(prediction) == squad(reference)),
    "label": lambda prediction, reference: float(squad(prediction) == squad(reference)),
    "token_f1": squad_f1,
    "rouge_l": rouge,
    "bleu": bleu,
    "chrf": chrf,
}


@pytest.mark.parametrize("name", sorted(DEFINITIONS))
def test_equals_its_definition(name: str) -> None:
    expected = [DEFINITIONS[name](*pair) for pair in zip(PREDICTIONS, REFERENCES, strict=True)]
    assert scores(name).examples == pytest.approx([min(1.0, score) for score in expected], abs=1e-9)


def test_each_has_a_definition_or_a_test() -> None:
    assert METRICS.built_in == {*DEFINITIONS, "regex", "json_fields"}


def test_totals_of_all_predictions() -> None:
    whole = sacrebleu.corpus_bleu(PREDICTIONS, [REFERENCES]).score / 100
    assert scores("bleu").totals == {"bleu_corpus": pytest.approx(whole)}
    references, predictions = ["yes", "yes", "yes", "no"], ["Yes.", "no", "yes", "maybe"]
    [metric] = load_metrics({"label": {}}).values()
    found = metric.score([""] * 4, references, predictions)
    assert found.examples == [1, 0, 1, 0]
    # yes: precision 1, recall 2/3; no: neither.
    assert found.totals == {"label_macro_f1": pytest.approx((0.8 + 0) / 2)}


def test_exact_match_of_the_very_text() -> None:
    [strict] = load_metrics({"exact_match": {"normalize": False}}).values()
    assert strict.score(["", ""], ["Да", "Да."], ["Да", "да"]).examples == [1, 0]


def by_regex(references: list[str], predictions: list[str], **settings: object) -> list[float]:
    [metric] = load_metrics({"regex": settings}).values()
    return metric.score([""] * len(references), references, predictions).examples


def test_numbers_are_equal_by_value() -> None:
    references = ["#### 1,000", "#### -3", "#### 0.50", "#### 18", "#### 7", "12,34", "1e5"]
    predictions = ["so 5 and 1000.0", "it is -3.", "= .5 or 0.5", "no idea", "7 of 8", "34", "100000"]
    assert by_regex(references, predictions) == [1, 1, 1, 0, 0, 1, 0]


def test_what_follows_a_mark() -> None:
    pattern = r"####\s*(.+)"
    assert by_regex(["#### 1,000", "x #### Paris"], ["#### 1000", "#### paris."], pattern=pattern) == [1, 1]
    assert by_regex(["1 2"], ["1 3"], which="first") == [1]


def test_a_pattern_that_cannot_be_used() -> None:
    with pytest.raises(ConfigError, match=r"metrics.regex.pattern=\( is not a regular expression"):
        by_regex(["1"], ["1"], pattern="(")
    with pytest.raises(ConfigError, match="choose first or last"):
        by_regex(["1"], ["1"], which="all")
    with pytest.raises(MetricError, match="finds nothing in the reference of example 2"):
        by_regex(["1", "one"], ["1", "1"])


def test_fields_of_json() -> None:
    reference = json.dumps(
        {"name": "Ann", "age": 30, "tags": ["a", "b"], "more": {"ok": True, "none": None}, "empty": []}
    )
    cases = {
        reference: 1.0,
        f"```json\n{reference}\n```": 1.0,
        '{"empty": [], "more": {"none": null, "ok": true}, "tags": ["a", "b"], "age": 30.0, "name": "Ann"}': 1.0,
        '{"name": "Bob", "age": 30, "tags": ["b", "a"], "more": {"ok": 1}, "empty": []}': 2 / 11,
        '{"name": "Ann"}': 1 / 7,
        "{}": 0.0,
        '{"name": "Ann"': 0.0,
        "": 0.0,
        "[" * 100_000: 0.0,
    }
    [metric] = load_metrics({"json_fields": {}}).values()
    found = metric.score([""] * len(cases), [reference] * len(cases), list(cases))
    assert found.examples == pytest.approx(list(cases.values()))
    assert found.totals == {"json_fields_valid": pytest.approx(6 / 9)}
    with pytest.raises(MetricError, match="the reference of example 1 is not JSON"):
        metric.score([""], ["no"], ["{}"])


def test_a_metric_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rapidfuzz.distance", None)
    with pytest.raises(ConfigError, match=r"metrics=rouge_l needs rapidfuzz: pip install 'lorahydra\[metrics\]'"):
        scores("rouge_l")


def test_nothing_is_scored_as_nothing() -> None:
    for name in sorted(METRICS.built_in):
        [metric] = load_metrics({name: {}}).values()
        assert isinstance(metric, Metric)
        assert metric.score([], [], []).examples == []
