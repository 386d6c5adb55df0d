"""Data: read → detect columns → check → split → chat format → tokens, everything cached by content.

```python
splits = load_splits(config.data, config.seed)
chat = ChatFormat(tokenizer, system_prompt=config.data.system_prompt)
train = tokenize(splits.train, chat, max_length=config.data.max_length, overlong=config.data.overlong)
```

- Read: `sources` finds files and hub datasets, `readers` read them, `ingest` keeps their valid rows (`arrow_cache`).
- Detect columns: `columns` and `messages` make conversations (`examples`) of rows.
- Check: `problems` collects those of rows; `report` holds what is known of a dataset.
- Split: `splits` cuts rows, `loading` does all of this for a configuration.
- Chat format and tokens: `chat` and `tokens`; `length_limits` says which rows fit;
  `prompt_files` reads prompts to answer.
"""

from lorahydra.data.chat.chat_format import ChatFormat
from lorahydra.data.chat.templates import PLAIN_TEMPLATE
from lorahydra.data.examples import Example, Message
from lorahydra.data.loading import DataSplits, check, load_splits
from lorahydra.data.report import DataReport
from lorahydra.data.splits import Split
from lorahydra.data.tokens import TokenizedSplit, tokenize

__all__ = [
    "PLAIN_TEMPLATE",
    "ChatFormat",
    "DataReport",
    "DataSplits",
    "Example",
    "Message",
    "Split",
    "TokenizedSplit",
    "check",
    "load_splits",
    "tokenize",
]
