"""A process that holds an adapter on its base model and answers: `python -m lorahydra.inference.model_process`.

It reads requests from its input and writes replies to its output, both one JSON object a line:

```
→ {"adapter": "outputs/study/best", "log": "answers.log"}       what to load, and a file for all that is printed
← {"ready": true}                                               the model is loaded, or {"error": one line}
→ {"number": 1, "messages": [{"role": "user", "content": "Hi"}], "max_new_tokens": 100, "until": [], "tuned": true}
← {"text": "Hel"} {"text": "lo"} …                              what is new of the answer
← {"answer": "Hello", "prompt_tokens": 9, "tokens": 2, "is_complete": true}     or {"error": one line}
→ {"stop": 1}                                                   ends the answer to this request, if it is not complete
```
It ends when its input ends, so that it does not outlive the server that started it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorahydra.data.examples import Message
from lorahydra.errors import LorahydraError
from lorahydra.inference.adapted_model import AdaptedModel, Conversation, open_adapter

__all__ = ["main"]


class _Requests:
    """The requests on the standard input, which a thread reads."""

    def __init__(self) -> None:
        self.stopped = 0
        """Number of the last request whose answer is no longer wanted."""
        self._waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def next(self) -> dict[str, Any]:
        """The next request."""
        return self._waiting.get()

    def _read(self) -> None:
        try:
            for line in sys.stdin:
                request = json.loads(line)
                if "stop" in request:
                    self.stopped = int(request["stop"])
                else:
                    self._waiting.put(request)
        finally:
            os._exit(0)  # also in the middle of an answer


def main() -> None:
    """Load the adapter that is asked for, and answer until the input ends."""
    # Libraries print to the standard output, which must have nothing but replies.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="ascii", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def reply(**values: Any) -> None:
        print(json.dumps(values), file=replies)

    requests = _Requests()
    import peft  # noqa: F401 - what loads an adapter imports it, and here is time for it

    asked = requests.next()
    log = Path(asked["log"])
    with log.open("ab") as output:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(output.fileno(), stream.fileno())
    os.chdir(log.parent)
    try:
        with open_adapter(Path(asked["adapter"])) as model:
            reply(ready=True)
            while True:
                request = requests.next()
                try:
                    _answer(model, request, requests, reply)
                except LorahydraError as error:
                    reply(error=_line(error))
    except (LorahydraError, MemoryError) as error:
        reply(error=_line(error))


def _answer(model: AdaptedModel, request: dict[str, Any], requests: _Requests, reply: Callable[..., None]) -> None:
    asked: Conversation = tuple(Message(turn["role"], turn["content"]) for turn in request["messages"])
    sent = ""

    def show(text: str) -> bool:
        nonlocal sent
        # Decoded with the next token, the end may read differently: what was sent is corrected by the whole answer.
        if len(text) > len(sent) and text.startswith(sent):
            reply(text=text[len(sent) :])
            sent = text
        return requests.stopped != int(request["number"])

    answer = model.follow(
        asked,
        show,
        max_new_tokens=request.get("max_new_tokens"),
        stop=request.get("until", ()),
        tuned=request.get("tuned", True),
    )
    facts = dataclasses.asdict(answer)
    reply(answer=facts.pop("text"), **facts)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    main()
