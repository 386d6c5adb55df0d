"""What MLflow loads and calls for an adapter: `mlflow.pyfunc.load_model`, `mlflow models serve`.

```python
model = mlflow.pyfunc.load_model("models:/lorahydra-mystudy@champion")
model.predict(["What is LoRA?"])                                             # → ["LoRA is …"]
model.predict({"messages": [{"role": "user", "content": "What is LoRA?"}]})
model.predict(pandas.DataFrame({"prompt": […]}), params={"max_new_tokens": 50})
```
MLflow imports this module from a copy of lorahydra inside the model, so nothing of lorahydra has to be installed there.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lorahydra.data.examples import ROLES, Message
from lorahydra.errors import DataError
from lorahydra.inference.adapted_model import AdaptedModel, Conversation, open_adapter

__all__ = ["Predictor", "conversations_of"]

COLUMNS = ("messages", "prompt")


class Predictor:
    """An adapter that answers; MLflow calls its `predict`."""

    def __init__(self, model: AdaptedModel, resources: ExitStack) -> None:
        self._model = model
        self._resources = resources
        # Turning the adapter off is a state of the model that all threads of a server share.
        self._mutex = threading.Lock()

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> list[str]:
        """The most likely answer to each prompt, as lorahydra's own trials generate it.

        Args:
            model_input: Prompts, as `conversations_of` takes them.
            params: `max_new_tokens`; `tuned`, False for the base model alone.

        Raises:
            DataError: There is no prompt in the input, or one that cannot be asked.
            ConfigError: A prompt is too long for the model.
        """
        options = params or {}
        prompts = conversations_of(model_input)
        limit = options.get("max_new_tokens")
        with self._mutex:
            return self._model.answer(
                prompts, max_new_tokens=None if limit is None else int(limit), tuned=bool(options.get("tuned", True))
            )

    def close(self) -> None:
        """Take the adapter off the base model."""
        self._resources.close()


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> Predictor:
    """MLflow's entry: load the adapter in the folder `path`.

    `model_config` may have `base_model` (where the base model is on this machine), `device` and `dtype`.
    """
    folder, settings = Path(path), model_config or {}
    resources = ExitStack()
    base, device = settings.get("base_model"), settings.get("device") or "auto"
    model = resources.enter_context(open_adapter(folder, base=base, device=device, dtype=settings.get("dtype")))
    return Predictor(model, resources)


def conversations_of(model_input: Any) -> list[Conversation]:
    """The conversations in any input that MLflow passes.

    Args:
        model_input: A text; a list of texts; mappings or a data frame with a column `prompt` (texts) or `messages`
            (lists of `{role, content}`); a frame of one column with either.

    Raises:
        DataError: It is none of these, or a conversation cannot be asked.
    """
    values = _values(model_input)
    if values and all(_is_message(value) for value in values):
        # One conversation, `{"messages": [{…}, {…}]}`, which MLflow has spread over rows.
        values = [values]
    if not values:
        raise DataError("there is no prompt to answer")
    return [_conversation(value, number) for number, value in enumerate(values)]


def _values(model_input: Any) -> list[Any]:
    """One value per conversation."""
    if isinstance(model_input, str):
        return [model_input]
    if hasattr(model_input, "columns"):
        names = list(model_input.columns)
        if len(names) == 1 and names[0] not in COLUMNS:
            return list(model_input[names[0]])
        return [_chosen(row) for row in model_input.to_dict("records")]
    if isinstance(model_input, Mapping):
        prompt = _chosen(model_input)
        return [prompt] if isinstance(prompt, str) else list(prompt)
    if isinstance(model_input, Iterable):
        return [
            _chosen(entry) if isinstance(entry, Mapping) and not _is_message(entry) else entry for entry in model_input
        ]
    raise DataError(f"prompts are texts or lists of messages, not {type(model_input).__name__}")


def _chosen(row: Mapping[Any, Any]) -> Any:
    """The prompt or messages of a row; pandas has NaN if a row lacks a column that another one has."""
    for name in COLUMNS:
        value = row.get(name)
        if value is not None and not isinstance(value, float):
            return value
    raise DataError(f"a row has neither a prompt nor messages: it has {', '.join(map(str, row)) or 'nothing'}")


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and "role" in value


def _conversation(value: Any, number: int) -> Conversation:
    if isinstance(value, str):
        return (Message("user", value),)
    try:
        messages = tuple(Message(str(entry["role"]), entry["content"]) for entry in value)
    except (TypeError, KeyError, AttributeError) as error:
        raise DataError(f"prompt {number} is neither a text nor a list of messages with role and content") from error
    for message in messages:
        if message.role not in ROLES or not isinstance(message.content, str):
            raise DataError(f"prompt {number} has a message of role '{message.role}': choose {', '.join(ROLES)}")
    if not messages or messages[-1].role == "assistant":
        raise DataError(f"prompt {number} ends with nothing to answer: its last message must be the user's")
    return messages
