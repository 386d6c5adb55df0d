"""What a sweep reads and changes in the configuration that Hydra composed."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from lorahydra.config.compose import to_config
from lorahydra.config.schema import ExperimentConfig
from lorahydra.sweep.storage import shown

__all__ = ["hide_password", "is_experiment", "sweep_folder", "typed"]

SWEEP_DIR = "hydra.sweep.dir"


def is_experiment(tree: DictConfig) -> bool:
    """Whether Hydra composed a lorahydra experiment, and not the configuration of another program."""
    return {field.name for field in fields(ExperimentConfig)} <= {str(key) for key in tree}


def typed(tree: DictConfig, output_dir: str = "outputs") -> ExperimentConfig:
    """The experiment, checked.

    Raises:
        ConfigError: It is not valid.
    """
    experiment = OmegaConf.masked_copy(tree, [str(key) for key in tree if key != "hydra"])
    with read_write(experiment), open_dict(experiment):
        experiment.output_dir = output_dir
    return to_config(experiment)


def sweep_folder(tree: DictConfig, study_name: str) -> Path:
    """The study's folder: the user's `hydra.sweep.dir`, else `outputs/STUDY`, which is set in the tree."""
    if not any(override.startswith(f"{SWEEP_DIR}=") for override in tree.hydra.overrides.hydra):
        # Each trial's configuration is composed again from the overrides, so the folder has to be among them.
        with read_write(tree.hydra), open_dict(tree.hydra):
            tree.hydra.sweep.dir = f"outputs/{study_name}"
            tree.hydra.overrides.hydra.append(f"{SWEEP_DIR}='outputs/{study_name}'")
    return Path(str(tree.hydra.sweep.dir))


def hide_password(tree: DictConfig, storage: str | None) -> None:
    """Keep the password of the study's database out of the configuration that Hydra writes beside each trial."""
    if storage is not None and shown(storage) != storage:
        with read_write(tree.hydra), open_dict(tree.hydra):
            others = [given for given in tree.hydra.overrides.hydra if "hydra.sweeper.storage=" not in given]
            tree.hydra.overrides.hydra = [*others, f"hydra.sweeper.storage='{shown(storage)}'"]
            tree.hydra.sweeper.storage = shown(storage)
