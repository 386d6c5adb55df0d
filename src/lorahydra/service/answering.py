"""Answers of fine-tuned models, from one process at a time that holds a model and ends when nobody asks it.

`lorahydra.inference.model_process` is that process; this is the server's side of it, on the event loop.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio

from lorahydra.errors import LorahydraError, OutputError
from lorahydra.service.errors import ConflictError, InvalidError, TooManyError
from lorahydra.utils.files import writing

__all__ = ["Answering"]

IDLE_SECONDS = 300.0
"""After so long without a question the model's memory is given back."""
MOST_WAITING = 16
"""Questions that are answered or wait at the same time."""
SECONDS_TO_STOP = 20.0
"""A process that does not end an answer within this time is killed: it may be reading a long prompt."""
LOG_FILE = "answers.log"


class Answering:
    """Asks the process of a fine-tuned model, which is started when it is needed.

    All questions take their turn. A question to another fine-tune replaces the process.
    """

    def __init__(self, idle_seconds: float = IDLE_SECONDS) -> None:
        self._idle_seconds = idle_seconds
        self._turn = asyncio.Lock()
        self._process: _ModelProcess | None = None
        self._end: asyncio.TimerHandle | None = None
        self._waiting = 0

    async def expect(self) -> None:
        """Start the process that will hold a model, if there is none: its imports take most of the time."""
        if self._process is None or not self._process.lives:
            self.close()
            self._process = _ModelProcess()
            self._rest()

    async def prepare(self, adapter: Path, log: Path) -> None:
        """Load a model before the first question to it, unless another question or another model comes first."""
        if not self._turn.locked():
            async with self._loaded(adapter, log):
                pass

    async def answer(self, adapter: Path, log: Path, question: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """The replies to a question: `{"text": …}` as the answer grows, at last `{"answer": …}`.

        Closing the iterator stops the answer.

        Args:
            adapter: Folder of the adapter.
            log: Folder for the log of the process.
            question: `messages`, `max_new_tokens`, `until` (texts before which it ends) and `tuned`.

        Raises:
            InvalidError: The question cannot be answered.
            TooManyError: Too many are waiting.
            ConflictError: The fine-tune was deleted meanwhile.
            OutputError: The model cannot be loaded, or its process was killed.
        """
        if self._waiting >= MOST_WAITING:
            raise TooManyError(f"{MOST_WAITING} questions are waiting for their answers", 5)
        self._waiting += 1
        try:
            async with self._loaded(adapter, log) as process, aclosing(process.answer(question)) as replies:
                async for reply in replies:
                    yield reply
        finally:
            self._waiting -= 1

    def forget(self, folder: Path) -> None:
        """End the process if its adapter is in this folder; may be called from any thread."""
        process = self._process
        if process is not None and process.adapter is not None and folder in process.adapter.parents:
            process.is_forgotten = True
            process.kill()

    def close(self) -> None:
        """End the process."""
        if self._end is not None:
            self._end.cancel()
        if self._process is not None:
            self._process.kill()
        self._process = None

    @asynccontextmanager
    async def _loaded(self, adapter: Path, log: Path) -> AsyncGenerator[_ModelProcess]:
        """The process with the adapter, for one question at a time."""
        async with self._turn:
            if self._end is not None:
                self._end.cancel()
            try:
                if self._process is None or self._process.adapter not in (None, adapter) or not self._process.lives:
                    self.close()
                    self._process = _ModelProcess()
                try:
                    await self._process.load(adapter, log)
                except LorahydraError:
                    self.close()
                    raise
                yield self._process
            finally:
                self._rest()  # however it went: what nobody asks must end

    def _rest(self) -> None:
        self._end = asyncio.get_running_loop().call_later(self._idle_seconds, self.close)


class _ModelProcess:
    """The process that holds an adapter, once it is told to load one; asked from one event loop."""

    def __init__(self) -> None:
        self.adapter: Path | None = None
        """Folder of the adapter."""
        self.is_forgotten = False
        """Whether it was ended because its fine-tune was deleted."""
        self._log: Path | None = None
        self._replies: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        """What it has said; at last None."""
        self._numbers = itertools.count(1)
        self._is_loaded = False
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lorahydra.inference.model_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Ctrl-C is for the server, which then closes the input.
            start_new_session=True,
        )
        threading.Thread(target=self._read, args=(asyncio.get_running_loop(),), daemon=True).start()

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        assert self._process.stdout is not None
        # The loop may be closed, and a request may be left that a process that was killed did not read.
        with suppress(RuntimeError, OSError), self._process:
            with suppress(ValueError):  # it was killed in the middle of a line
                for line in self._process.stdout:
                    loop.call_soon_threadsafe(self._replies.put_nowait, json.loads(line))
            self._process.wait()
            loop.call_soon_threadsafe(self._replies.put_nowait, None)

    @property
    def lives(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    async def load(self, adapter: Path, log: Path) -> None:
        """Wait until the model is loaded; a process loads only one."""
        if self.adapter is None:
            self._log = log / LOG_FILE
            try:
                with writing(log):
                    self._log.write_bytes(b"")
            except FileNotFoundError:
                raise _deleted() from None
            self.adapter = adapter
            self._send({"adapter": str(adapter), "log": str(self._log)})
        if not self._is_loaded:
            reply = await self._reply()
            if "error" in reply:
                raise OutputError(f"the model cannot be loaded: {reply['error']}")
            self._is_loaded = True

    async def answer(self, question: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """The replies to a question; see `Answering.answer`."""
        number, is_over = next(self._numbers), False
        self._send({**question, "number": number})
        try:
            while not is_over:
                reply = await self._reply()
                is_over = "answer" in reply or "error" in reply
                if "error" in reply:
                    raise InvalidError(reply["error"], "not_answerable")
                yield reply
        finally:
            if not is_over:
                await self._stop(number)

    async def _stop(self, number: int) -> None:
        """End an answer that nobody waits for any more."""
        with anyio.move_on_after(SECONDS_TO_STOP, shield=True) as patience, suppress(LorahydraError):
            self._send({"stop": number})
            while not {"answer", "error"} & (await self._reply()).keys():
                pass
        if patience.cancelled_caught:
            self.kill()

    def _send(self, request: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        with suppress(OSError, ValueError):  # that it has ended, and its input is closed, is read next
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()

    async def _reply(self) -> dict[str, Any]:
        reply = await self._replies.get()
        if reply is None:
            self._replies.put_nowait(None)
            if self.is_forgotten:
                raise _deleted()
            if (code := self._process.returncode) == -signal.SIGKILL:
                raise OutputError("the process that holds the model was killed, perhaps because memory ran out")
            raise OutputError(f"the process that holds the model ended with {code}: see {self._log}")
        return reply

    def kill(self) -> None:
        """End it now."""
        self._process.kill()
        self._process.wait()


def _deleted() -> ConflictError:
    return ConflictError("the fine-tune was deleted meanwhile", "no_adapter")
