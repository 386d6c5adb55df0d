"""lorahydra finds the best LoRA adapter for your data: Hydra configs, an Optuna search, an LLM judge, MLflow."""

import os
from importlib.metadata import PackageNotFoundError, version

from lorahydra.errors import LorahydraError

# Read when huggingface_hub is first imported: nothing about this machine is sent along with a download.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

__all__ = ["LorahydraError", "__version__"]

try:
    __version__ = version("lorahydra")
except PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0.0.0"
