"""From conversations to tokens: chat templates, and which tokens carry loss.

- `chat_format`: a tokenizer with its chat template, in use.
- `templates`: which template; `turns`: what it puts around a turn; `rendering` and `conversation`: text under it.
- `control_tokens`: names of control tokens in messages stay text.
- `row_warnings`: what in a row looks like a mistake.
"""

from lorahydra.data.chat.chat_format import ChatFormat

__all__ = ["ChatFormat"]
