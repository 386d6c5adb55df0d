"""Memory: a quicker allocator for CPU training, and giving memory back."""

from __future__ import annotations

import ctypes
import functools
import gc
import logging
import os
import sys
from collections.abc import Callable
from typing import TypeVar

import torch

from lorahydra.names import GPU_MEMORY

__all__ = [
    "OutOfMemoryError",
    "keep_freed_memory",
    "keep_to_share",
    "ran_out_of_memory",
    "release_memory",
    "with_a_batch_that_fits",
]

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# Parameters of glibc's mallopt(3).
M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_MAX = -4

OUT_OF_MEMORY = (
    "can't allocate memory",
    "backend out of memory",
    # Errors of a full GPU where something other than torch's allocator asks for memory.
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""Parts of the messages of errors that have no special type."""


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


@functools.cache
def keep_freed_memory() -> None:
    """Let glibc keep freed blocks of this process for the next step instead of returning each to the kernel.

    A training step frees and allocates gigabytes; by default each large tensor is a new mapping whose pages the kernel
    zeroes again. Keeping them made a step of SmolLM2-135M on two cores about 15 % quicker (`benchmarks/allocator.py`).
    `release_memory` gives the rest back after a trial. Does nothing if the C library is not glibc.
    """
    if (library := _glibc()) is not None:
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        library.mallopt(M_TOP_PAD, 256 * 2**20)


def release_memory() -> None:
    """Collect garbage and return free memory to the device and the system."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if (library := _glibc()) is not None:
        library.malloc_trim(0)


def keep_to_share(device: torch.device) -> None:
    """Limit this process to its share of a GPU, which a study divides among its workers."""
    share = os.environ.get(GPU_MEMORY, "")
    if device.type == "cuda" and share.isdecimal():
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, int(share) * 2**20 / total), device)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch means that memory ran out, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)
    )


class OutOfMemoryError(Exception):
    """Memory does not suffice for a batch of one."""


def with_a_batch_that_fits(run: Callable[[int], Result], batch_size: int) -> tuple[Result, int]:
    """The result of `run` with a batch size, halved for as long as memory runs out, and that batch size.

    Raises:
        OutOfMemoryError: Memory ran out with a batch of one.
    """
    while True:
        try:
            return run(batch_size), batch_size
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
        # Only now, when nothing refers to the failed batch any more, is there memory to give back.
        release_memory()
        if batch_size <= 1:
            raise OutOfMemoryError
        smaller = (batch_size + 1) // 2
        logger.warning("Out of memory with a batch of %d: going on with %d", batch_size, smaller)
        batch_size = smaller
