"""The plugin class that Hydra finds; its code is in `lorahydra.sweep`, which is imported when a sweep begins."""

from __future__ import annotations

from typing import Any

from hydra.types import HydraContext, TaskFunction
from hydra_plugins.hydra_optuna_sweeper.optuna_sweeper import OptunaSweeper
from omegaconf import DictConfig

__all__ = ["LorahydraSweeper"]


class LorahydraSweeper(OptunaSweeper):
    """The Optuna sweeper of hydra-optuna-sweeper, with pruning, durable studies and MLflow.

    Args:
        keys: The keys of hydra-optuna-sweeper (sampler, direction, storage, study_name, n_trials, n_jobs,
            max_failure_rate, custom_search_space, params) and lorahydra's own (pruner, max_deaths, grid_steps).
    """

    def __init__(self, **keys: Any) -> None:
        self._keys = keys

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Receive the configuration that Hydra composed."""
        from lorahydra.sweep.study_sweeper import StudySweeper

        self.sweeper = StudySweeper(self._keys, hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Any:
        """Run the study.

        Returns:
            Its result; None if the study continues in other processes.
        """
        return self.sweeper.sweep(arguments)
