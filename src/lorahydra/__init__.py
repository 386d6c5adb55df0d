"""lorahydra finds the best LoRA adapter for your data: Hydra configs, an Optuna search, an LLM judge, MLflow."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

from lorahydra.config.judge_registry import register_judge
from lorahydra.config.metric_registry import register_metric
from lorahydra.errors import JudgeNotFoundError, LorahydraError
from lorahydra.utils.environment import own_version

if TYPE_CHECKING:
    from lorahydra.adapters.export import export_adapter
    from lorahydra.adapters.find import find_adapter
    from lorahydra.inference.adapted_model import conversations, open_adapter
    from lorahydra.judges.loading import get_model_by_id
    from lorahydra.tuner import LoRATuner

# Read when huggingface_hub is first imported: nothing about this machine is sent along with a download.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# Read by OpenMP (libgomp) when torch is first imported: its threads spin for some 50 microseconds while they wait for
# the next operation, and then sleep. By default they spin for milliseconds, which takes the cores from other processes,
# for example a second trial; without any spinning, generation is slower (docs/performance.md).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")

__all__ = [
    "JudgeNotFoundError",
    "LoRATuner",
    "LorahydraError",
    "__version__",
    "conversations",
    "export_adapter",
    "find_adapter",
    "get_model_by_id",
    "open_adapter",
    "register_judge",
    "register_metric",
]

__version__ = own_version()

_DEFERRED = {
    "LoRATuner": "lorahydra.tuner",
    "conversations": "lorahydra.inference.adapted_model",
    "export_adapter": "lorahydra.adapters.export",
    "find_adapter": "lorahydra.adapters.find",
    "get_model_by_id": "lorahydra.judges.loading",
    "open_adapter": "lorahydra.inference.adapted_model",
}
"""Modules of the names that need Hydra, MLflow, Optuna or torch: imported on use, so `import lorahydra` is quick."""


def __getattr__(name: str) -> object:
    if name in _DEFERRED:
        return getattr(importlib.import_module(_DEFERRED[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
