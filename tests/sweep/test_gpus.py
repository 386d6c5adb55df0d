"""Each worker of a study gets a GPU, and its share of one that several workers use."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorahydra.names import GPU_MEMORY
from lorahydra.sweep.gpus import gpu_for

TWO_GPUS = """#!/bin/sh
case "$*" in
-L) echo 'GPU 0: NVIDIA H100 (UUID: GPU-1)'; echo 'GPU 1: NVIDIA H100 (UUID: GPU-2)' ;;
'-i 0 '*memory.free*) echo 80001 ;;
'-i 1 '*memory.free*) echo '[N/A]' ;;
*) exit 9 ;;
esac
"""


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(TWO_GPUS)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("two_gpus")
def test_workers_are_spread_over_the_gpus() -> None:
    assert [gpu_for(number, 2) for number in range(2)] == [{"CUDA_VISIBLE_DEVICES": name} for name in "01"]


@pytest.mark.usefixtures("two_gpus")
def test_workers_of_one_gpu_share_what_is_free_there() -> None:
    third = {"CUDA_VISIBLE_DEVICES": "0", GPU_MEMORY: "26667"}
    # It is unknown how much memory of the second one is free.
    assert [gpu_for(number, 5) for number in (0, 1, 4)] == [third, {"CUDA_VISIBLE_DEVICES": "1"}, third]


@pytest.mark.usefixtures("two_gpus")
def test_only_the_gpus_that_are_allowed_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [gpu_for(number, 2) for number in range(2)] == [{"CUDA_VISIBLE_DEVICES": "1"}] * 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu_for(0, 2) == {}, "all are hidden"


def test_without_a_gpu_nothing_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpu_for(0, 2) == {}
