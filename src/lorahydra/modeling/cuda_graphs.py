"""Work on a GPU that is recorded once and then repeated without Python (CUDA graphs).

A step of a small model launches thousands of kernels, and launching them takes the processor several times as long as
running them takes the GPU. A recording is launched as a whole. `LORAHYDRA_CUDA_GRAPHS=0` turns recording off.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from lorahydra.modeling.compat import end_failed_recording
from lorahydra.modeling.memory import ran_out_of_memory

__all__ = ["NotRecordableError", "Recorder", "recorder"]

SWITCH = "LORAHYDRA_CUDA_GRAPHS"

_one_at_a_time = threading.Lock()


class NotRecordableError(Exception):
    """The work cannot be recorded.

    Args:
        reason: Why.
        for_now: Whether it may be possible later, as when memory did not suffice.
    """

    def __init__(self, reason: str = "", *, for_now: bool = False) -> None:
        super().__init__(reason)
        self.for_now = for_now


class Recorder:
    """Records work on one GPU.

    Recordings share their memory: what one computes may be overwritten by the next one that is run. What has to last,
    and what changes from run to run, is in tensors that were made before.

    Args:
        device: The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._last: torch.cuda.CUDAGraph | None = None
        """Keeps the shared memory alive from one recording to the next."""

    def __call__(self, work: Callable[[], None], generator: torch.Generator | None = None) -> Callable[[], None]:
        """Record work without running it.

        Args:
            work: Runs on the tensors' current contents whenever it is repeated. It must have been run before, so that
                libraries have set themselves up.
            generator: Of random numbers that the work draws. They go on from its state at each repetition.

        Returns:
            Repeats the work.

        Raises:
            NotRecordableError: The work cannot be recorded; nothing has changed.
        """
        with _one_at_a_time, torch.cuda.device(self._device):
            try:
                self._last = self._recorded(work, generator)
            except (RuntimeError, NotImplementedError) as error:
                end_failed_recording(self._device, self._pool)
                self._pool = torch.cuda.graph_pool_handle()
                with suppress(RuntimeError):
                    # Before 2.13, torch's generators count as being recorded until a recording has succeeded. It is
                    # kept, because torch refuses a pool from which all recordings are gone.
                    self._last = self._recorded(torch.empty(1, device=self._device).zero_, generator)
                raise NotRecordableError(str(error).partition("\n")[0], for_now=ran_out_of_memory(error)) from None
        return self._last.replay

    def _recorded(self, work: Callable[[], object], generator: torch.Generator | None) -> torch.cuda.CUDAGraph:
        recording = torch.cuda.CUDAGraph()
        if generator is not None:
            recording.register_generator_state(generator)
        before = torch.cuda.current_stream()
        # Other threads, such as a judge's on the same GPU, may go on with their work, but not record.
        settings: Any = {"stream": _stream(self._device), "capture_error_mode": "thread_local"}
        try:
            with torch.cuda.graph(recording, self._pool, **settings):
                work()
        finally:
            # After an error torch leaves its own stream in place.
            torch.cuda.set_stream(before)
        return recording


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The stream for all recordings: libraries keep some 32 MiB for each stream that they have seen."""
    return torch.cuda.Stream(device)


def recorder(device: torch.device) -> Recorder | None:
    """A recorder for `device`; None where work cannot be recorded, or is not to be."""
    return Recorder(device) if device.type == "cuda" and os.environ.get(SWITCH) != "0" else None
