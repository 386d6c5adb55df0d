"""A thread of the server that looks after something again and again, whatever goes wrong meanwhile."""

from __future__ import annotations

import threading

from lorahydra.errors import LorahydraError

__all__ = ["Watcher", "fault_of"]


class Watcher(threading.Thread):
    """Looks every so many `seconds`, and as soon as it is woken, until it is stopped."""

    def __init__(self, name: str, seconds: float) -> None:
        super().__init__(name=name, daemon=True)
        self._seconds = seconds
        self._wake, self._stopping = threading.Event(), threading.Event()

    def run(self) -> None:
        """Look until `stop`."""
        while not self._stopping.is_set():
            try:
                self._look()
            except Exception as error:
                self._failed(error)
            self._wake.wait(self._seconds)
            self._wake.clear()

    def wake(self) -> None:
        """Look now, because something has changed."""
        self._wake.set()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._wake.set()
        self.join()

    def _look(self) -> None:
        raise NotImplementedError

    def _failed(self, error: Exception) -> None:
        """A look ended with this error, whatever it is; the next one begins as usual."""
        raise NotImplementedError


def fault_of(error: Exception) -> str:
    """An error in one line for people: a mistake of the server is for its log."""
    if isinstance(error, LorahydraError):
        return str(error)
    return f"the server made a mistake ({type(error).__name__}): see its log"
