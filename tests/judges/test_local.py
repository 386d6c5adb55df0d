"""A judge on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.configs import judge_config

from lorahydra.config.schema import ModelConfig
from lorahydra.errors import ConfigError, LorahydraError
from lorahydra.judges import Fault, JudgeCase, JudgeFault, SingleSession, make_judge, start_judging
from lorahydra.judges.builtin.local import LocalJudge, _mean_score, _Writing
from lorahydra.judges.parsing import read_verdict
from lorahydra.judges.prompt import PromptWriter
from lorahydra.modeling.base import load_base

CASE = JudgeCase("What is 2 + 2?", "4", "It is 4.")


def config(model: Path, *overrides: str) -> object:
    base = [f"judge.model={model}", "judge.options.device=cpu", "judge.max_output_tokens=8"]
    return judge_config("local", *base, "judge.rubric.instructions=Judge.", *overrides)


def test_any_model_gives_a_whole_verdict(tiny_model: Path) -> None:
    settings = config(tiny_model)
    judge = make_judge(settings)  # type: ignore[arg-type]
    prompt = PromptWriter(settings.rubric).write(CASE, 8)  # type: ignore[attr-defined]
    replies = [judge.ask(prompt) for _ in range(2)]
    assert replies[0] == replies[1], "it judges alike each time"
    verdict = read_verdict(replies[0], settings.rubric)  # type: ignore[attr-defined]
    assert all(0 <= score <= 5 for score in verdict.scores.values())
    assert replies[0].prompt_tokens > 100
    assert replies[0].completion_tokens > 10
    assert judge.runs_here


def test_the_score_is_the_mean_under_the_probabilities_of_the_digits(tiny_model: Path) -> None:
    import torch

    judge = make_judge(config(tiny_model))  # type: ignore[arg-type]
    assert isinstance(judge, LocalJudge)
    base = judge._base
    before, digits = judge._digits('{"reasoning": "fine", "scores": {"style":')
    assert base.tokenizer.decode(digits) == "012345"
    with torch.inference_mode():
        writing = _Writing(base, before[:10])
        writing.add(before[10:])
        # The same text in one piece, without a cache.
        logits = base.model(input_ids=torch.tensor([before])).logits[0, -1]
    chances = torch.softmax(logits[digits].double(), -1)
    expected = float((chances * torch.arange(6)).sum())
    assert _mean_score(writing.logits[digits]) == pytest.approx(expected, abs=1e-3)


def test_it_does_not_replace_the_model_that_is_tuned(tiny_model: Path, tiny_base_model: Path) -> None:
    settings = ModelConfig(name_or_path=str(tiny_base_model), device="cpu")
    tuned = load_base(settings)
    make_judge(config(tiny_model))  # type: ignore[arg-type]
    assert load_base(settings) is tuned


def test_a_session_judges_with_it(tiny_model: Path) -> None:
    settings = config(tiny_model)
    session = SingleSession(settings, make_judge(settings), None)  # type: ignore[arg-type]
    judgement = start_judging(session, [CASE, JudgeCase("q", "r", "")]).wait()
    assert judgement.coverage == 1
    assert str(tiny_model) in judgement.models[0]


def test_a_text_without_room_is_a_missing_verdict(tiny_model: Path) -> None:
    settings = config(tiny_model)
    judge = make_judge(settings)  # type: ignore[arg-type]
    prompt = PromptWriter(settings.rubric).write(JudgeCase("q" * 3000, "r", "a"), 8)  # type: ignore[attr-defined]
    with pytest.raises(JudgeFault, match="has room for 2048") as caught:
        judge.ask(prompt)
    assert caught.value.fault is Fault.REQUEST_REFUSED


def test_a_model_that_is_not_there_is_named_by_the_judge_s_key() -> None:
    with pytest.raises(LorahydraError, match="judge.model=no/such-model is not in the local cache"):
        make_judge(judge_config("local", "judge.model=no/such-model"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("judge.options.device=0", "judge.options.device=0 is not allowed: give a text"),
        ("judge.options.device=tpu", "judge.options.device=tpu is not allowed"),
        ("judge.options.dtype=fp16", "judge.options.dtype=fp16 is not allowed"),
    ],
)
def test_a_bad_option_is_named(tiny_model: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_judge(config(tiny_model, override))  # type: ignore[arg-type]


def test_unknown_options_are_refused(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match=r"judge.options.magic is not an option of judge local: it has device, dtype"):
        make_judge(config(tiny_model, "+judge.options.magic=1"))  # type: ignore[arg-type]
