"""lorahydra finds the best LoRA adapter for your data: Hydra configs, an Optuna search, an LLM judge, MLflow."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from lorahydra.errors import JudgeNotFoundError, LorahydraError
from lorahydra.registry import register_judge

if TYPE_CHECKING:
    from lorahydra.judges import Judge
    from lorahydra.tuner import LoRATuner

# Read when huggingface_hub is first imported: nothing about this machine is sent along with a download.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# Read by OpenMP (libgomp) when torch is first imported: its threads spin for some 50 microseconds while they wait for
# the next operation, and then sleep. By itself they spin for milliseconds, which takes the cores from other processes,
# a second trial for example; without any spinning, generation is slower (docs/performance.md).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")

__all__ = [
    "JudgeNotFoundError",
    "LoRATuner",
    "LorahydraError",
    "__version__",
    "get_model_by_id",
    "register_judge",
]

try:
    __version__ = version("lorahydra")
except PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0.0.0"


def get_model_by_id(model_id: str) -> Judge:
    """The judge with this name and its shipped settings; see `lorahydra.judges.get_model_by_id`.

    Raises:
        JudgeNotFoundError: No judge has this name.
    """
    # Imported here: it needs Hydra, and `import lorahydra` shall be quick.
    from lorahydra.judges.loading import get_model_by_id as get

    return get(model_id)


def __getattr__(name: str) -> object:
    # It needs Hydra, Optuna and torch, and `import lorahydra` shall be quick.
    if name == "LoRATuner":
        from lorahydra.tuner import LoRATuner

        return LoRATuner
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
