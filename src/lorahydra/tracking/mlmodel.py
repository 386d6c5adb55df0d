"""An adapter's folder as an MLflow model: what MLflow needs to load and serve it, beside PEFT's files.

PEFT still loads the folder. It refers to the base model by name and digest; the weights are not copied unless
asked. The code that answers is copied in, so that a server needs only packages of the package index.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

from lorahydra.config.schema import TrackingConfig
from lorahydra.modeling.metadata import AdapterMetadata, read_metadata
from lorahydra.modeling.model_files import copy_model
from lorahydra.names import ADAPTER_CONFIG_FILE, ADAPTER_DIR, ADAPTER_WEIGHTS_FILE, BASE_DIR
from lorahydra.tracking.compat import mute
from lorahydra.tracking.patience import patient
from lorahydra.tracking.store import opened, quiet_environment
from lorahydra.utils.files import writing

__all__ = ["add_model_files", "write_model_files"]

LOADER = "lorahydra.inference.pyfunc"
SERVED = ("__init__.py", "errors.py", "names.py")
SERVED_PACKAGES = ("config", "data", "inference", "modeling", "utils")
"""What of lorahydra answers; imports point downwards, so nothing else is needed."""
REQUIREMENTS = (
    *("mlflow", "torch", "transformers", "peft", "accelerate", "safetensors", "filelock", "Jinja2", "gguf"),
    *("pandas", "rich"),
)
EXAMPLE = ["Hello! What can you help me with?"]


def write_model_files(folder: Path, *, with_base: bool = False) -> None:
    """Make an adapter's folder an MLflow model, in place; with a copy of its base model in `base/` if `with_base`.

    Raises:
        ModelError: The folder holds no adapter, or its base model is not here to be copied.
    """
    origin = read_metadata(folder)
    with writing(folder), tempfile.TemporaryDirectory(prefix=".mlmodel.", dir=folder.parent) as name:
        made = Path(name) / "model"
        _save(made, Path(name) / "lorahydra", origin)
        for entry in made.iterdir():
            target = folder / entry.name
            if target.is_dir():
                shutil.rmtree(target)
            entry.replace(target)
        if with_base:
            copy_model(origin.model, folder / BASE_DIR)


@patient
def add_model_files(config: TrackingConfig, run_id: str, folder: Path) -> None:
    """Send the files that make a run's adapter an MLflow model, from its folder after `write_model_files`.

    The run already has the adapter's weights.
    """
    with tempfile.TemporaryDirectory() as name, opened(config, run_id, artifacts=True) as client:
        there = shutil.ignore_patterns(ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, "__pycache__", BASE_DIR)
        with writing(Path(name)):
            extras = shutil.copytree(folder, Path(name) / "model", ignore=there)
        client.log_artifacts(run_id, str(extras), ADAPTER_DIR)
        if (folder / BASE_DIR).is_dir():  # gigabytes: sent from where they are
            client.log_artifacts(run_id, str(folder / BASE_DIR), f"{ADAPTER_DIR}/{BASE_DIR}")


def _save(target: Path, code: Path, origin: AdapterMetadata) -> None:
    quiet_environment()
    with warnings.catch_warnings():
        # MLflow reads its own type hints while it is imported, and warns of them.
        warnings.simplefilter("ignore")
        import mlflow.pyfunc
    from mlflow.models.signature import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, DataType, ParamSchema, ParamSpec, Schema

    _copy_code(code)
    # Without the local part of a build, such as `+cpu`, which the package index does not have.
    packages = REQUIREMENTS if origin.model.quantization is None else (*REQUIREMENTS, "bitsandbytes")
    requirements = [f"{name}=={metadata.version(name).partition('+')[0]}" for name in packages]
    signature = ModelSignature(
        # A text or a list of messages: either is one column, and MLflow has no type for both.
        inputs=Schema([ColSpec(AnyType())]),
        outputs=Schema([ColSpec(DataType.string)]),
        params=ParamSchema(
            [
                ParamSpec("max_new_tokens", DataType.long, origin.max_new_tokens),
                ParamSpec("tuned", DataType.boolean, True),
            ]
        ),
    )
    with mute(), warnings.catch_warnings():
        # MLflow recommends type hints that loader modules cannot have.
        warnings.simplefilter("ignore")
        mlflow.pyfunc.save_model(
            str(target),
            loader_module=LOADER,
            code_paths=[str(code)],
            signature=signature,
            input_example=EXAMPLE,
            pip_requirements=requirements,
            model_config={"base_model": None, "device": "auto", "dtype": None},
            metadata=_facts(origin),
        )


def _copy_code(target: Path) -> None:
    source = Path(__file__).resolve().parents[1]
    target.mkdir()
    for name in SERVED:
        shutil.copyfile(source / name, target / name)
    for name in SERVED_PACKAGES:
        shutil.copytree(source / name, target / name, ignore=shutil.ignore_patterns("__pycache__", "demo"))


def _facts(origin: AdapterMetadata) -> dict[str, Any]:
    facts = {
        "base_model": origin.model.name_or_path,
        "base_revision": origin.model.revision,
        "base_digest": origin.base_digest,
        "dtype": origin.model.dtype,
        "quantization": origin.model.quantization,
        "lorahydra_run": origin.run_id,
    }
    return {name: value for name, value in facts.items() if value is not None}
