"""`judge=local`: a model on this machine judges, so that no text leaves it.

A small model rarely keeps to a JSON form, so the form is written for it. The model reasons freely up to a limit. Then
the score of each criterion is the mean of 0…5 under the model's probabilities of these tokens, which agrees better
with people than the most probable token does (G-Eval, arXiv 2303.16634). The result is deterministic.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from lorahydra.config.judge import JudgeConfig
from lorahydra.config.schema import ModelConfig
from lorahydra.data import ChatFormat
from lorahydra.data.examples import Example, Message
from lorahydra.errors import ConfigError, DataError, JudgeSetupError, ModelError, ServiceError
from lorahydra.judges.base import Fault, Judge, JudgeFault, JudgePrompt, JudgeReply
from lorahydra.judges.http import check_options, require_model
from lorahydra.judges.prompt import MAX_SCORE
from lorahydra.modeling.base import BaseModel, load_base
from lorahydra.modeling.memory import ran_out_of_memory, release_memory

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LocalJudge"]

T = TypeVar("T")

OPENING = '{"reasoning": "'


class LocalJudge(Judge):
    """Judges with a causal language model of `lorahydra.modeling`; one answer at a time.

    `judge.model` is what `model.name_or_path` takes; the options are `device`, `dtype` and `revision`.

    Raises:
        ConfigError: No model, or an unknown option.
        ModelError: The model cannot be used.
        ServiceError: It is on a hub that cannot be reached.
    """

    runs_here = True

    def __init__(self, config: JudgeConfig) -> None:
        check_options(config, ("device", "dtype", "revision"))
        settings = _named_by_the_judge(lambda: ModelConfig(name_or_path=require_model(config), **config.options))
        self._base = _named_by_the_judge(lambda: load_base(settings, role="judge"))
        self.model = self._base.source
        # The limit cuts the reasoning, which changes the scores.
        self.identity = f"{self._base.digest} {self._base.dtype} {config.max_output_tokens}"
        self._chat = ChatFormat(self._base.tokenizer)
        self._lock = threading.Lock()
        self._digits('{"style":')

    def ask(self, prompt: JudgePrompt) -> JudgeReply:
        """See `Judge.ask`; there is no time limit."""
        import torch

        with self._lock, torch.inference_mode():
            try:
                return self._judge(prompt)
            except (RuntimeError, MemoryError) as error:
                if not ran_out_of_memory(error):
                    raise
        release_memory()
        raise JudgeFault(Fault.REQUEST_REFUSED, "out of memory: take a smaller model or judge.options.device=cpu")

    def _judge(self, prompt: JudgePrompt) -> JudgeReply:
        start = self._prompt_ids(prompt)
        window = getattr(self._base.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        # The form after the reasoning takes about a dozen tokens for each criterion.
        needed = len(start) + prompt.max_output_tokens + 16 * len(prompt.criteria)
        if window is not None and needed > window:
            raise JudgeFault(
                Fault.REQUEST_REFUSED, f"the prompt needs {needed} tokens and {self.model} has room for {window}"
            )
        writing = _Writing(self._base, start)
        reasoning = self._reason(writing, prompt.max_output_tokens)
        scores: dict[str, float] = {}
        text = '", "scores": {'
        for name in prompt.criteria:
            before, digits = self._digits(f"{text}{json.dumps(name, ensure_ascii=False)}:")
            writing.add(before)
            scores[name] = _mean_score(writing.logits[digits])
            text = f"{round(scores[name])}, "
        reply = json.dumps({"reasoning": reasoning, "scores": scores}, ensure_ascii=False)
        return JudgeReply(reply, self.model, len(start), writing.length - len(start), fractions=True)

    def _reason(self, writing: _Writing, limit: int) -> str:
        """Greedy text up to a quotation mark, the end of the line, or the limit."""
        tokenizer = self._base.tokenizer
        stop = {*tokenizer.all_special_ids, *self._chat.end_tokens}
        written: list[int] = []
        text = ""
        for _ in range(limit):
            token = int(writing.logits.argmax())
            longer = tokenizer.decode([*written, token])
            if token in stop or '"' in longer or "\n" in longer.lstrip("\n"):
                break
            written.append(token)
            text = longer
            writing.add([token])
        return text.strip()

    def _digits(self, text: str) -> tuple[list[int], list[int]]:
        """The tokens of `text`, and for each of 0…5 the token that would follow it and a space."""
        written = [self._ids(f"{text} {score}") for score in range(MAX_SCORE + 1)]
        before = written[0][:-1]
        digits = [ids[-1] for ids in written if ids[:-1] == before]
        if len(set(digits)) <= MAX_SCORE:
            raise JudgeSetupError(
                f"judge.model={self.model} cannot judge: its tokenizer has no single tokens for 0 to 5"
            )
        return before, digits

    def _prompt_ids(self, prompt: JudgePrompt) -> list[int]:
        answer = Message("assistant", OPENING)
        try:
            asked: tuple[Message, ...] = (Message("system", prompt.system), Message("user", prompt.user), answer)
            ids = self._chat.prompt_ids(Example(asked, line=1))
        except DataError:
            # Some chat templates have no system message.
            asked = (Message("user", f"{prompt.system}\n\n{prompt.user}"), answer)
            ids = self._chat.prompt_ids(Example(asked, line=1))
        return [*ids, *self._ids(OPENING)]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._base.tokenizer.encode(text, add_special_tokens=False)
        return ids


class _Writing:
    """A text that a model reads and writes, with its cache of keys and values."""

    def __init__(self, base: BaseModel, start: list[int]) -> None:
        self._base = base
        self._cache: Any = None
        self.length = 0
        self.logits: Tensor
        """Of the next token, shape `(vocabulary,)`."""
        self.add(start)

    def add(self, ids: list[int]) -> None:
        """Append tokens."""
        import torch

        tokens = torch.tensor([ids], device=self._base.device)
        output = self._base.model(input_ids=tokens, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._cache = output.past_key_values
        self.logits = output.logits[0, -1].float()
        self.length += len(ids)


def _mean_score(logits: Tensor) -> float:
    """Mean of 0…5 under the probabilities of their tokens; `logits` has shape `(6,)`."""
    import torch

    chances = torch.softmax(logits.double(), dim=-1)
    mean = float((chances * torch.arange(MAX_SCORE + 1, device=chances.device)).sum())
    return round(min(max(mean, 0.0), float(MAX_SCORE)), 4)


def _named_by_the_judge(load: Callable[[], T]) -> T:
    """Call `load`, with the judge's keys in place of the model's in its error messages."""
    try:
        return load()
    except (ConfigError, ModelError, ServiceError) as error:
        message = str(error).replace("model.name_or_path", "judge.model")
        # The other advice is for the model that is tuned.
        message = re.sub(r"give a local folder \(.*", "or give a local folder: judge.model=FOLDER", message)
        raise type(error)(re.sub(r"\bmodel\.(device|dtype|revision)", r"judge.options.\1", message)) from error
