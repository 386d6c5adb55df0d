"""The steps of a trial, with its MLflow run open around them; `run` goes through them in order."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from lorahydra.config.compose import flatten
from lorahydra.config.schema import ExperimentConfig
from lorahydra.evaluation import Judging
from lorahydra.modeling.generation import write_greedy_settings
from lorahydra.modeling.metadata import write_metadata
from lorahydra.tracking import check_store
from lorahydra.training import TrainedAdapter, TrainingJob
from lorahydra.trial.forgetting import measure_forgetting
from lorahydra.trial.place import StudyPlace, TrialResult, end_trial, metrics_of, start_trial
from lorahydra.trial.predict import Answers, predict_both
from lorahydra.trial.prepare import metadata_of, prepare
from lorahydra.trial.record import record_adapter, record_description, record_setup
from lorahydra.trial.rejudge import rejudge_hint
from lorahydra.trial.saved import SavedTrial, forget_trial, save_trial
from lorahydra.trial.score import score
from lorahydra.utils.interrupts import noticed, postponed
from lorahydra.utils.progress import Progress

__all__ = ["Trial"]

logger = logging.getLogger(__name__)


class Trial:
    """A trial, prepared; its methods are the steps of `run_trial`, which packs use as well.

    `open` comes first. The run that it opens is closed at the end of the trial's block: as failed, pruned or
    interrupted if that ends with an error.

    Args:
        config: The whole experiment.
        overrides: The user's overrides, for the record.
        progress: Where to show the progress.
        place: The trial's place in a study.

    Raises:
        LorahydraError: The trial cannot begin.
    """

    def __init__(
        self, config: ExperimentConfig, overrides: Sequence[str], progress: Progress, place: StudyPlace | None
    ) -> None:
        self._started = time.perf_counter()
        self.config, self._place, self._progress = config, place, progress
        self._folder = Path(config.output_dir)
        if place is None:  # a study has checked its store
            check_store(config.tracking)
        self.prepared = prepare(config)
        session, examples = self.prepared.session, self.prepared.eval_set
        self._judging = Judging(session, examples, config.seed, n_examples=config.judge.n_examples)
        self._number, self._params = (
            (0, _searched(config, overrides)) if place is None else (place.number, place.params)
        )
        self._overrides = overrides
        self._block = ExitStack()

    def open(self) -> None:
        """Open the run, and record what is known before the training."""
        config, place, block = self.config, self._place, self._block
        # An interrupt in between would leave a run that nobody closes.
        with postponed():
            self.run = block.enter_context(start_trial(config, place))
        block.enter_context(self._judging)
        block.enter_context(rejudge_hint(self._folder, place))
        block.enter_context(noticed())
        if place is not None:
            place.started(self.run.run_id, self._folder)
        record_setup(self.run, config, self._overrides, self.prepared)
        record_description(self.run, self._params, self.prepared.splits.report.warnings)
        forget_trial(self._folder)
        seed = config.seed if config.training.seed is None else config.training.seed
        self.job = TrainingJob(config.lora, config.training, seed, self._folder, metrics_of(self.run, place))
        """The adapter to be trained."""

    @property
    def is_open(self) -> bool:
        """Whether its run was opened."""
        return hasattr(self, "run")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._block.__exit__(*error)

    def predict(self, trained: TrainedAdapter, answers: Answers | None = None) -> None:
        """Record the adapter, and let it and the untuned model answer; the judge begins with the first answers.

        Args:
            trained: The adapter.
            answers: Its answers, if it has answered already.
        """
        config, run, prepared = self.config, self.run, self.prepared
        write_metadata(trained.folder, metadata_of(config, prepared, run.run_id))
        write_greedy_settings(trained.folder, prepared.base.model, prepared.base.tokenizer, prepared.chat.end_tokens)
        record_adapter(run, config, trained, prepared.seconds)
        self._trained = trained
        self._predictions = predictions = predict_both(
            config,
            prepared,
            prepared.eval_set,
            trained.folder,
            self._judging,
            self._progress,
            answers=answers,
            steps=trained.steps,
        )
        logger.info("Trial %d: params=%s, BERTScore=%.4f", self._number, self._params, predictions.tuned.bertscore_f1)
        if prepared.session is not None:  # before the judge is waited for
            home = (None, None) if self._place is None else (self._place.study_name, self._place.storage)
            save_trial(
                SavedTrial(self._folder, run.run_id, config, predictions, trained.eval_loss, self._seconds(), *home)
            )

    def score(self) -> TrialResult:
        """Wait for the judge, record the scores and close the run as complete."""
        adapter, loss = self._trained.folder, self._trained.eval_loss
        forgetting = None
        if self._place is None or self.config.evaluation.forgetting == "all":
            forgetting = measure_forgetting(self.config, self.prepared, adapter, self._progress)
        if forgetting is not None and self._place is not None:
            self._place.forgot(forgetting.loss.mean)
        scores = score(self.run, self.config, self._predictions, self._judging, self._progress, forgetting=forgetting)
        result = TrialResult(self.run.run_id, adapter, scores, loss, self._seconds())
        end_trial(self.run, result, self._place)
        return result

    def _seconds(self) -> float:
        return time.perf_counter() - self._started


def _searched(config: ExperimentConfig, overrides: Sequence[str]) -> dict[str, object]:
    """The hyperparameters among the overrides, with their values."""
    values = flatten(config)
    keys = (override.partition("=")[0].lstrip("+") for override in overrides)
    return {key: values[key] for key in keys if key in values and key.startswith(("lora.", "training."))}
