"""The first GPU, if there is one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

__all__ = ["almost_full_gpu", "needs_gpu"]


def needs_gpu(test: object) -> object:
    """Mark a test that is skipped without a GPU."""
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")(test))


@contextmanager
def almost_full_gpu(*, left: int) -> Iterator[None]:
    """Take all memory of the GPU but `left` bytes, as another program would."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    taken = None
    while taken is None:
        try:
            taken = torch.empty(free - left, dtype=torch.uint8, device="cuda")
        except torch.OutOfMemoryError:
            # Not all that is free can be had in one piece.
            free -= 2 * 2**20
    try:
        yield
    finally:
        del taken
        torch.cuda.empty_cache()
