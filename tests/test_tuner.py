"""`LoRATuner` in a notebook: what it prints, and what its objects look like there."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lorahydra import LoRATuner
from lorahydra.config.compose import compose
from lorahydra.config.schema import ExperimentConfig
from lorahydra.names import State
from lorahydra.sweep.study_result import FinalScores, facts_of
from lorahydra.sweep.trial_record import TrialRecord
from lorahydra.tuner import _printed_log

logger = logging.getLogger("lorahydra.sweep")


@contextmanager
def fresh_program() -> Iterator[logging.Logger]:
    """The root logger as a program has it that has not set up logging, unlike pytest."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = []
    root.setLevel(logging.WARNING)
    try:
        yield root
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def test_the_log_is_printed_where_no_logging_is_set_up(capsys: pytest.CaptureFixture[str]) -> None:
    with fresh_program() as root:
        with _printed_log():
            root.addHandler(logging.StreamHandler())  # as a library does in the middle of it
            logger.info("Trial 0")
        logger.info("afterwards")
    output = capsys.readouterr()
    assert output.out.count("\n") == 1
    assert output.out.endswith(" Trial 0\n")
    assert output.err == ""


@pytest.mark.parametrize("level", [logging.INFO, logging.ERROR])
def test_a_program_that_set_up_logging_decides(capsys: pytest.CaptureFixture[str], level: int) -> None:
    with fresh_program():
        logging.basicConfig(level=level, format="mine: %(message)s")
        with _printed_log():
            logger.info("Trial 0")
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", "mine: Trial 0\n" if level == logging.INFO else "")


def test_a_tuner_shows_its_overrides_without_passwords() -> None:
    tuner = LoRATuner(n_trials=3, overrides=["tracking.uri=postgresql://me:secret@host/db"])
    shown = "LoRATuner(overrides=['judge=none', 'hydra.sweeper.n_trials=3', 'tracking.uri=postgresql://***'])"
    assert repr(tuner) == shown


def test_a_config_shows_what_is_not_the_default() -> None:
    assert repr(ExperimentConfig()) == "ExperimentConfig()"
    config = compose(["search=none", "lora.r=8", "tracking.uri=postgresql://me:secret@host/db", "output_dir=o"])
    assert repr(config) == (
        "ExperimentConfig(lora=LoraConfig(r=8), tracking=TrackingConfig(uri='postgresql://me:***@host/db'), "
        "output_dir='o')"
    )


def test_a_trial_fits_in_a_line() -> None:
    record = TrialRecord(4, State.FAILED, {"lora.r": 8}, losses=dict.fromkeys(range(1000), 0.5), failure="nan")
    assert repr(record) == "TrialRecord(number=4, state=failed, params={'lora.r': 8}, failure='nan')"


def test_final_scores_come_back_from_the_store() -> None:
    assert FinalScores.from_facts(facts_of(None)) is None
    names = ("combined", "combined_low", "combined_high")
    facts = {f"{side}/{name}": 0.5 for side in ("test", "baseline") for name in names}
    earlier = FinalScores.from_facts(facts)
    assert earlier is not None
    assert earlier.gain is None, "studies of earlier versions kept no gain"
    assert repr(earlier) == "FinalScores(combined=0.5000, baseline=0.5000)"
