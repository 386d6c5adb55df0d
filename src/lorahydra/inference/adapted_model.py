"""Answers of an adapter and of its base model to prompts of any kind, as a trial generates them.

```python
with open_adapter(Path("outputs/study/best")) as model:
    model.answer(conversations(["What is LoRA?"]))
    model.answer(conversations(["What is LoRA?"]), tuned=False)   # the base model alone
```
`lorahydra generate`, exports and the MLflow model all answer through this.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorahydra.config.schema import Dtype, ModelConfig
from lorahydra.data.chat.chat_format import ChatFormat
from lorahydra.data.examples import Example, Message
from lorahydra.errors import ConfigError
from lorahydra.modeling.base import BaseModel, load_base
from lorahydra.modeling.devices import resolve_device, resolve_dtype
from lorahydra.modeling.generation import context_window, generate, stop_tokens
from lorahydra.modeling.lora import load_adapter
from lorahydra.modeling.metadata import AdapterMetadata, read_metadata
from lorahydra.modeling.packaged import PACKAGED
from lorahydra.names import BASE_DIR

__all__ = [
    "AdaptedModel",
    "Answer",
    "Conversation",
    "chat_format",
    "conversations",
    "model_at",
    "open_adapter",
    "place_of_base",
    "warn_of_another_base",
]

logger = logging.getLogger(__name__)

Conversation = tuple[Message, ...]
"""Messages up to the one that is to be answered."""
BATCH_SIZE = 32
CUT_CHARACTER = "\ufffd"
"""Stands for the first bytes of a character whose other bytes are in the next token."""


@dataclass(frozen=True)
class Answer:
    """An answer that was followed while it grew."""

    text: str
    prompt_tokens: int
    tokens: int
    """Its length, without the token that ended it."""
    is_complete: bool
    """False if it is as long as allowed, or was stopped."""


def conversations(prompts: Sequence[str]) -> list[Conversation]:
    """Each prompt as a conversation of one message."""
    return [(Message("user", prompt),) for prompt in prompts]


def chat_format(base: BaseModel, metadata: AdapterMetadata) -> ChatFormat:
    """How prompts are written for this adapter."""
    return ChatFormat(
        base.tokenizer,
        chat_template=metadata.model.chat_template,
        system_prompt=metadata.system_prompt,
        special_tokens=metadata.special_tokens,
    )


class AdaptedModel:
    """A base model with an adapter attached, ready to answer; `open_adapter` makes one."""

    def __init__(self, base: BaseModel, model: Any, metadata: AdapterMetadata) -> None:
        self.base = base
        self.metadata = metadata
        self._model = model
        self._chat = chat_format(base, metadata)

    def answer(
        self, asked: Sequence[Conversation], *, max_new_tokens: int | None = None, tuned: bool = True
    ) -> list[str]:
        """The most likely answer to each conversation, in their order.

        Args:
            asked: Conversations whose last message is not the assistant's.
            max_new_tokens: Longest answer; as in the adapter's trial when None.
            tuned: Answer with the adapter; otherwise with the base model alone.

        Raises:
            DataError: The chat template refuses a conversation.
            ConfigError: A prompt leaves no room for an answer.
        """
        tokens = self.answer_tokens(asked, max_new_tokens=max_new_tokens, tuned=tuned)
        return [self._chat.answer_text(answer) for answer in tokens]

    def answer_tokens(
        self, asked: Sequence[Conversation], *, max_new_tokens: int | None = None, tuned: bool = True
    ) -> list[list[int]]:
        """Like `answer`, but as token ids, without the tokens that end an answer."""
        with nullcontext() if tuned else self._model.disable_adapter():
            [answers] = generate(
                self._model,
                [self.prompt_ids(conversation) for conversation in asked],
                stop=stop_tokens(self.base.model, self._chat.end_tokens),
                ends=self._chat.text_end,
                max_new_tokens=max_new_tokens or self.metadata.max_new_tokens,
                batch_size=BATCH_SIZE,
            )
        return answers

    def follow(
        self,
        conversation: Conversation,
        show: Callable[[str], bool],
        *,
        max_new_tokens: int | None = None,
        stop: Sequence[str] = (),
        tuned: bool = True,
    ) -> Answer:
        """Like `answer` for one conversation, whose answer is shown while it grows.

        An answer is never longer than the model's context has room for.

        Args:
            conversation: Its last message is not the assistant's.
            show: Called after each token with the text so far; if it returns False, the answer ends there.
            max_new_tokens: Longest answer; as in the adapter's trial when None.
            stop: Texts before which the answer ends.
            tuned: Answer with the adapter; otherwise with the base model alone.

        Raises:
            DataError: The chat template refuses the conversation.
            ConfigError: The prompt leaves no room for an answer.
        """
        prompt = self.prompt_ids(conversation)
        limit = max_new_tokens or self.metadata.max_new_tokens
        if (window := context_window(self.base.model)) is not None:
            if len(prompt) >= window:
                raise ConfigError(
                    f"the conversation has {len(prompt)} tokens, and the model has room for {window} with the answer: "
                    "shorten it, or begin a new one"
                )
            limit = min(limit, window - len(prompt))
        ends, wanted, is_stopped, seen = self._chat.text_end, True, False, 0

        def ended(tokens: Sequence[int]) -> int | None:
            nonlocal wanted, is_stopped, seen
            kept = None if ends is None else ends(tokens)
            if kept is not None:
                return kept
            if len(tokens) > seen:  # an architecture with another kind of state reports each token twice
                seen = len(tokens)
                text = self._chat.answer_text(tokens).rstrip(CUT_CHARACTER)
                before = _before(text, stop)
                is_stopped = before is not None
                wanted = show(_certain(text, stop) if before is None else before)
            return len(tokens) if is_stopped or not wanted else None

        with nullcontext() if tuned else self._model.disable_adapter():
            [[tokens]] = generate(
                self._model,
                [prompt],
                stop=stop_tokens(self.base.model, self._chat.end_tokens),
                ends=ended,
                max_new_tokens=limit,
                batch_size=1,
            )
        text = self._chat.answer_text(tokens)
        before = _before(text, stop)
        is_complete = before is not None or (wanted and len(tokens) < limit)
        return Answer(text if before is None else before, len(prompt), len(tokens), is_complete)

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """Token ids of a conversation with the generation prompt after it."""
        # The template is applied to everything before the last message, the answer.
        return self._chat.prompt_ids(Example((*conversation, Message("assistant", "")), line=0))


def _before(text: str, stop: Sequence[str]) -> str | None:
    """What stands before the first of some texts; None if none of them is there."""
    places = [place for place in map(text.find, stop) if place >= 0]
    return text[: min(places)] if places else None


def _certain(text: str, stop: Sequence[str]) -> str:
    """The text without an end that may turn out to be the beginning of one of some texts."""
    longest = max(map(len, stop), default=1) - 1
    open_ends = (
        size for size in range(min(longest, len(text)), 0, -1) if any(s.startswith(text[-size:]) for s in stop)
    )
    return text[: len(text) - next(open_ends, 0)]


def model_at(model: ModelConfig, place: str) -> ModelConfig:
    """The same base model at another place: packaged name, folder, GGUF file or hub id."""
    return dataclasses.replace(model, name_or_path=place, revision=None, gguf_file=None)


def warn_of_another_base(base: BaseModel, metadata: AdapterMetadata) -> None:
    """Warn if a base model is not the one that an adapter was trained on."""
    if metadata.base_digest is not None and base.digest != metadata.base_digest and _comparable(base, metadata):
        logger.warning(
            "%s is not the base model that this adapter was trained on (%s, not %s): answers may be worse",
            base.source,
            base.digest,
            metadata.base_digest,
        )


def _comparable(base: BaseModel, metadata: AdapterMetadata) -> bool:
    """Whether both digests are of the same thing: a hub's commit, a package's wheel, or a folder's content."""
    wheels = {f"sha256:{packaged.sha256}" for packaged in PACKAGED.values()}

    def kind(digest: str | None) -> str:
        return "wheel" if str(digest).partition("+")[0] in wheels else str(digest).partition(":")[0]

    return kind(base.digest) == kind(metadata.base_digest)


def place_of_base(folder: Path, base: str | None) -> str | None:
    """Where an adapter's base model is now: as stated, or the copy in its folder; None if it has not moved."""
    copy = folder / BASE_DIR
    return base or (str(copy) if copy.is_dir() else None)


@contextmanager
def open_adapter(
    folder: Path,
    *,
    base: str | None = None,
    device: str = "auto",
    dtype: Dtype | None = None,
    system_prompt: str | None = None,
) -> Iterator[AdaptedModel]:
    """Load an adapter with its base model while the block runs.

    Args:
        folder: The adapter, in PEFT's format.
        base: The place of the base model (packaged name, folder or hub id), if it is neither where it was in training
            nor in the adapter's folder.
        device: As `model.device`.
        dtype: As `model.dtype`; when None the one in which the adapter was scored, or `auto` if the device lacks it.
        system_prompt: System message of conversations that have none, instead of the adapter's; empty for none.

    Raises:
        ModelError: The adapter or its base model cannot be used.
        ServiceError: The base model is on the hub, which cannot be reached.
    """
    metadata = read_metadata(folder)
    if system_prompt is not None:
        metadata = dataclasses.replace(metadata, system_prompt=system_prompt or None)
    model = _on_this_machine(metadata.model, device, dtype)
    if (place := place_of_base(folder, base)) is not None:
        model = model_at(model, place)
    loaded = load_base(model)
    warn_of_another_base(loaded, metadata)
    with load_adapter(loaded, folder) as adapted:
        yield AdaptedModel(loaded, adapted, metadata)


def _on_this_machine(model: ModelConfig, device: str, dtype: Dtype | None) -> ModelConfig:
    """The settings of training, except for what this machine's device cannot do."""
    here = resolve_device(device)
    attention = model.attn_implementation
    if attention is not None and "flash" in attention and here.type != "cuda":
        attention = None
    if dtype is None:
        dtype = model.dtype
        try:
            resolve_dtype(dtype, here)
        except ConfigError:
            logger.warning(
                "The adapter was scored in %s, in which %s cannot compute: model.dtype=auto is used", dtype, here
            )
            dtype = "auto"
    return dataclasses.replace(model, device=device, dtype=dtype, attn_implementation=attention)
