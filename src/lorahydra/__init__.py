"""lorahydra finds the best LoRA adapter for your data: Hydra configs, an Optuna search, an LLM judge, MLflow."""

from importlib.metadata import PackageNotFoundError, version

from lorahydra.errors import LorahydraError

__all__ = ["LorahydraError", "__version__"]

try:
    __version__ = version("lorahydra")
except PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0.0.0"
