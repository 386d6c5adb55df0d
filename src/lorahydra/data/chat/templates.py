"""Chat templates as text: where one comes from, and the plain one for models without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorahydra.data.problems import reading
from lorahydra.data.readers.encodings import marked
from lorahydra.errors import ModelError

__all__ = ["PLAIN_TEMPLATE", "find_template"]

PLAIN_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{ '### Assistant:\n' + message['content'] + eos_token }}"
    "{%- if not loop.last -%}{{ '\n\n' }}{%- endif -%}"
    "{%- else -%}"
    "{{ '### ' + message['role'] | capitalize + ':\n' + message['content'] + '\n\n' }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '### Assistant:\n' }}{%- endif -%}"
)
"""What a conversation looks like for a model without a chat template; `</s>` stands for its end of sequence:

```text
### System:
Be brief.

### User:
What is the capital of France?

### Assistant:
Paris.</s>
```

A tokenizer that puts a beginning-of-sequence token before every text also gets it here.
"""

FIXED_DAY = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"
"""Put before templates that print today's date (Llama 3.2, SmolLM3): the same seed gives the same tokens on
any day. Llama's own template falls back to this day."""


def find_template(tokenizer: Any, given: str | None) -> str:
    """Choose the given template (Jinja text, or the path of a file), else the tokenizer's own, else the plain one.

    Raises:
        ModelError: `given` is neither, or the tokenizer has several templates and no default.
        DataError: The file cannot be read.
    """
    if given is not None:
        text = _read(given)
    elif tokenizer.chat_template:
        try:
            text = tokenizer.get_chat_template()
        except ValueError as error:
            raise ModelError(
                "the model has several chat templates: put the text of one in model.chat_template"
            ) from error
        if not isinstance(text, str):
            raise ModelError("the model's chat template is not text: put one in model.chat_template")
    else:
        # What its tokenizer does by default shows whether a base model expects such a token.
        begins = tokenizer("x", add_special_tokens=True)["input_ids"][:1] == [tokenizer.bos_token_id]
        return ("{{- bos_token -}}" if begins else "") + PLAIN_TEMPLATE
    return FIXED_DAY + text if "strftime_now" in text else text


def _read(given: str) -> str:
    if "{{" in given or "{%" in given:
        return given
    path = Path(given).expanduser()
    with reading(path):
        if not path.is_file():
            raise ModelError(f"model.chat_template={given} is neither a file nor Jinja text: give one of the two")
        try:
            content = path.read_bytes()
            # A byte order mark that is left in would precede every prompt.
            return content.decode(marked(content) or "utf-8-sig")
        except UnicodeDecodeError as error:
            raise ModelError(f"model.chat_template={given} is not UTF-8 text") from error
