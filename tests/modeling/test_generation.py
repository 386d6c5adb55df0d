"""Generation gives the tokens that `model.generate` gives, whatever the batches, and stops where it should."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.generation import generate
from tests.support.gpu import almost_full_gpu, needs_gpu
from tests.support.models import SMALL_SIZES
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconH1Config,
    Gemma2Config,
    GenerationConfig,
    GPTNeoConfig,
    MambaConfig,
    PreTrainedModel,
    Qwen3Config,
)

from lorahydra.errors import ConfigError
from lorahydra.modeling import decoding
from lorahydra.modeling.cuda_graphs import NotRecordableError
from lorahydra.modeling.generation import stop_tokens
from lorahydra.modeling.memory import release_memory
from lorahydra.utils.progress import Progress

SIZES = SMALL_SIZES | {"max_position_embeddings": 128, "initializer_range": 0.5}
# Grouped queries, sliding windows mixed with full attention, and a state that is not a key-value cache.
CONFIGS = {
    "qwen3": Qwen3Config(**SIZES),
    "gemma2": Gemma2Config(**SIZES, sliding_window=8, final_logit_softcapping=None),
    # Its position bias is made from the mask of each row.
    "bloom": BloomConfig(vocab_size=61, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.5),
    # Its local layers count their window from the end of all keys.
    "gpt_neo": GPTNeoConfig(
        vocab_size=61,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=16,
        max_position_embeddings=128,
        intermediate_size=48,
        initializer_range=0.5,
    ),
    # Keys and values, and a state that cannot lose rows.
    "falcon_h1": FalconH1Config(**SIZES, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8),
    "mamba": MambaConfig(vocab_size=61, hidden_size=32, num_hidden_layers=2, state_size=4, initializer_range=0.5),
}
STOP = frozenset({5, 9})
QUIET = Progress(live=False)


def model_of(name: str, attention: str = "eager") -> PreTrainedModel:
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation=attention).eval()
    # Pad and stop tokens are given to `generate`; what the class would add itself is not wanted.
    model.generation_config = GenerationConfig()
    return model


def prompts(count: int = 12) -> list[list[int]]:
    random = torch.Generator().manual_seed(4)
    return [
        torch.randint(10, 61, (int(torch.randint(1, 20, (1,), generator=random)),), generator=random).tolist()
        for _ in range(count)
    ]


def one_by_one(model: PreTrainedModel, prompt: list[int], tokens: int) -> list[int]:
    """The answer by transformers' own `generate`, without padding, a batch or an end."""
    settings = GenerationConfig(max_new_tokens=tokens, do_sample=False, pad_token_id=0)
    return model.generate(torch.tensor([prompt]), generation_config=settings)[0, len(prompt) :].tolist()


@functools.cache
def endless(name: str) -> list[list[int]]:
    """The answers of transformers to all prompts."""
    model = model_of(name)
    return [one_by_one(model, prompt, 24) for prompt in prompts()]


def cut(answer: list[int], stop: frozenset[int]) -> list[int]:
    return list(itertools.takewhile(lambda token: token not in stop, answer))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_answers_equal_transformers_own(name: str, batch_size: int) -> None:
    if name in ("mamba", "falcon_h1") and batch_size > 1:
        pytest.skip("transformers does not hide padding on the left from the state of this model")
    answers = endless(name)
    pairs = itertools.combinations(sorted({token for answer in answers for token in answer}), 2)
    stop = max(map(frozenset, pairs), key=lambda pair: len({len(cut(answer, pair)) for answer in answers}))
    expected = [cut(answer, stop) for answer in answers]
    assert len({len(answer) for answer in expected}) > 1, "answers of several lengths, so that rows really leave"
    actual = generate(model_of(name), prompts(), stop=stop, max_new_tokens=24, batch_size=batch_size, progress=QUIET)
    assert actual == expected


@pytest.mark.parametrize(
    ("name", "attention", "recordable"),
    [("qwen3", "eager", True), ("qwen3", "sdpa", True), ("bloom", "eager", False), ("gpt_neo", "eager", False)],
)
@pytest.mark.parametrize("trusting", [False, True])
def test_a_repeated_step_gives_the_same_tokens(
    monkeypatch: pytest.MonkeyPatch, name: str, attention: str, recordable: bool, trusting: bool
) -> None:
    """Also if transformers says of every model that its steps can be repeated: the logits tell."""
    model, asked = model_of(name, attention), prompts()
    settings: Any = {"stop": STOP, "max_new_tokens": 24, "batch_size": 5, "progress": QUIET}
    if trusting:
        monkeypatch.setattr(decoding, "computes_in_static_shapes", lambda _: True)
    expected, recorded = generate(model, asked, **settings), []

    def record(work: Callable[[], None]) -> Callable[[], None]:
        recorded.append(work)
        return work

    monkeypatch.setattr(decoding, "recorder", lambda _: record)
    # A short batch first, whose verdict does not hold for longer ones.
    generate(model, [[11, 12], [13]], **settings | {"max_new_tokens": 10})
    assert generate(model, asked, **settings) == expected
    if not trusting:
        assert bool(recorded) == recordable


def test_a_step_that_cannot_be_recorded_is_computed_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tries = model_of("qwen3"), []

    def record(work: Callable[[], None]) -> Callable[[], None]:
        tries.append(work)
        raise NotRecordableError

    expected = generate(model, prompts(), stop=STOP, max_new_tokens=24, batch_size=4, progress=QUIET)
    monkeypatch.setattr(decoding, "recorder", lambda _: record)
    assert generate(model, prompts(), stop=STOP, max_new_tokens=24, batch_size=4, progress=QUIET) == expected
    assert len(tries) == 1, "the next batches do not try again"


@pytest.mark.parametrize("name", ["qwen3", "mamba"])
def test_an_answer_that_is_over_by_what_it_says_is_cut(name: str) -> None:
    asked = prompts()[: 1 if name == "mamba" else None]
    answers = endless(name)[: len(asked)]
    # What the first answer says in its middle ends every answer, and is not part of it.
    ending = answers[0][5:7]

    def ends(answer: Sequence[int]) -> int | None:
        return len(answer) - 2 if list(answer[-2:]) == ending else None

    places = [[at for at in range(23) if answer[at : at + 2] == ending] for answer in answers]
    expected = [answer[: at[0]] if at else answer for answer, at in zip(answers, places, strict=True)]
    actual = generate(
        model_of(name), asked, stop=frozenset(), ends=ends, max_new_tokens=24, batch_size=5, progress=QUIET
    )
    assert len(actual[0]) <= 5
    assert actual == expected


def test_finished_rows_leave_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = model_of("qwen3"), []
    handle = model.register_forward_pre_hook(
        lambda _, __, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    answers = generate(model, prompts(), stop=STOP, max_new_tokens=24, batch_size=64, progress=QUIET)
    handle.remove()
    assert sizes[0] == 12
    assert sizes[-1] <= sum(len(answer) == 24 for answer in answers) / (1 - decoding.COMPACT_SHARE) + 1
    assert sizes == sorted(sizes, reverse=True)


def test_a_batch_that_does_not_fit_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("qwen3")

    def refuse(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
        if len(kwargs["input_ids"]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    expected = generate(model, prompts(), stop=STOP, max_new_tokens=8, batch_size=64, progress=QUIET)
    handle = model.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        assert generate(model, prompts(), stop=STOP, max_new_tokens=8, batch_size=64, progress=QUIET) == expected
    finally:
        handle.remove()


def test_a_prompt_without_room_for_an_answer_is_one_line() -> None:
    with pytest.raises(ConfigError, match="a prompt of 100 tokens and evaluation.max_new_tokens=29 exceed the model's"):
        generate(model_of("qwen3"), [[11] * 100], stop=STOP, max_new_tokens=29, batch_size=1, progress=QUIET)


def test_every_stop_token_counts(tiny_model: Path) -> None:
    from lorahydra.config.schema import ModelConfig
    from lorahydra.modeling.base import load_base

    base = load_base(ModelConfig(name_or_path=str(tiny_model), device="cpu"))
    configured = base.model.generation_config.eos_token_id
    base.model.generation_config.eos_token_id = [2, 77]
    try:
        assert stop_tokens(base.model, [5]) == {2, 77, 5}
    finally:
        base.model.generation_config.eos_token_id = configured


def test_no_prompts_give_no_answers() -> None:
    assert generate(model_of("qwen3"), [], stop=STOP, max_new_tokens=8, batch_size=4, progress=QUIET) == []


@needs_gpu
def test_a_full_gpu_answers_in_smaller_batches() -> None:
    model, asked = model_of("qwen3").to("cuda"), prompts(40)
    settings = {"stop": STOP, "max_new_tokens": 24, "progress": QUIET}
    expected = generate(model, asked, batch_size=40, **settings)
    # The cache of a row takes 11 KB: all of them together do not fit, by far.
    with almost_full_gpu(left=48 * 2**20):
        answers = generate(model, asked * 400, batch_size=16_000, **settings)
    assert answers == expected * 400


@needs_gpu
@pytest.mark.parametrize("waits", [False, True])
def test_steps_on_a_gpu_are_recorded_and_give_the_same_tokens(monkeypatch: pytest.MonkeyPatch, waits: bool) -> None:
    model, asked = model_of("qwen3", "sdpa").to("cuda"), prompts(40)
    if waits:  # which cannot be recorded
        model.lm_head.register_forward_hook(lambda _, __, logits: logits.add(logits.sum().item() * 0))
    settings: Any = {"stop": STOP, "max_new_tokens": 60, "batch_size": 40, "progress": QUIET}
    monkeypatch.setenv("LORAHYDRA_CUDA_GRAPHS", "0")
    expected = generate(model, asked, **settings)
    monkeypatch.delenv("LORAHYDRA_CUDA_GRAPHS")
    calls: list[Any] = []
    model.register_forward_pre_hook(lambda *call: calls.append(call))
    assert generate(model, asked, **settings) == expected
    assert (len(calls) > 40) == waits
    release_memory()
    # Libraries keep some memory for the stream of recordings.
    held = torch.cuda.memory_reserved()
    assert generate(model, asked * 2, **settings) == expected * 2
    release_memory()
    assert torch.cuda.memory_reserved() <= held, "the memory of recordings is given back"
