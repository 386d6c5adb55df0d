"""Which GPU a worker takes, and how much of its memory; asks `nvidia-smi`, so that CUDA is not started here."""

from __future__ import annotations

import os
import subprocess

from lorahydra.names import GPU_MEMORY

__all__ = ["gpu_for"]


def gpu_for(number: int, count: int) -> dict[str, str]:
    """Environment of a worker: one GPU, and its share of the free memory if other workers have the same GPU.

    Without a limit, a trial that is too large for the GPU takes all of it before it fails, and the trials of the other
    workers fail with it.

    Args:
        number: Of the worker, from 0.
        count: Number of workers that are started together.
    """
    devices = _devices()
    if not devices:
        return {}
    device = devices[number % len(devices)]
    sharing = len(range(number % len(devices), count, len(devices)))
    free = _free_memory(device) if sharing > 1 else None
    return {"CUDA_VISIBLE_DEVICES": device} | ({} if free is None else {GPU_MEMORY: str(free // sharing)})


def _devices() -> list[str]:
    """Names of the GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:  # empty: none at all
        return [name.strip() for name in visible.split(",") if name.strip()]
    return [str(index) for index, _ in enumerate(line for line in _nvidia_smi("-L") if line.startswith("GPU "))]


def _free_memory(device: str) -> int | None:
    """MiB of free memory; None if `nvidia-smi` does not say."""
    [line, *_] = _nvidia_smi("-i", device, "--query-gpu=memory.free", "--format=csv,noheader,nounits") or [""]
    return int(line) if line.strip().isdecimal() else None


def _nvidia_smi(*options: str) -> list[str]:
    try:
        done = subprocess.run(["nvidia-smi", *options], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.splitlines()
