"""From conversations to tokens: chat templates, and which tokens carry loss.

- `chat_format`: a tokenizer with its chat template; turns examples into tokens.
- `templates` chooses the template, `turns` finds out what it puts around a turn, and `rendering` and `conversation`
  render conversations with it.
- `control_tokens` keeps names of control tokens in messages as text.
- `row_warnings` finds what looks like a mistake in a row.
"""

from lorahydra.data.chat.chat_format import ChatFormat

__all__ = ["ChatFormat"]
