"""Errors of libraries become ours."""

from __future__ import annotations

import pytest

from lorahydra.errors import ConfigError, ModelError, library_errors


@pytest.mark.parametrize("error", [KeyError("x"), RecursionError(), RuntimeError("CUDA"), AssertionError()])
def test_whatever_a_library_raises_becomes_ours(error: Exception) -> None:
    with pytest.raises(ModelError, match="^broken: ") as caught, library_errors(lambda e: ModelError(f"broken: {e!r}")):
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [MemoryError(), ConfigError("ours"), KeyboardInterrupt(), LookupError("let through")])
def test_memory_that_runs_out_and_our_own_errors_pass(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, library_errors(lambda _: ModelError("broken"), but=LookupError):
        raise error
    assert caught.value is error
