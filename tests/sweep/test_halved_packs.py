"""A pack is halved at 1/4 and at 1/2 of its trials' schedules, also if it is interrupted there."""

from __future__ import annotations

import logging
import signal
from collections import Counter
from pathlib import Path

import pytest
from tests.support.programs import ProgramRunner, environment
from tests.support.stores import runs_of
from tests.sweep.conftest import stored_trials
from tests.sweep.test_packs import COMPLETE, INTERRUPTED, PRUNED, encoder, ends, run, settings

from lorahydra.names import State, Tag

__all__ = ["encoder"]

pytestmark = pytest.mark.slow

PACK = (
    *("training.learning_rate=1e-2,1e-3,1e-4,1e-5", "training.pack=4", "training.max_steps=8"),
    *("hydra/sweeper/pruner=auto", "hydra.sweeper.pruner.neighbours=0", "training.evals_per_epoch=0"),
)


def test_a_pack_is_halved_twice(tiny_model: Path, encoder: Path, place: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lorahydra.sweep"):
        result = run(tiny_model, encoder, place, *PACK)
    assert Counter(ends(place).values()) == {PRUNED: 3, COMPLETE: 1}
    reasons = {trial.number: trial.failure or "" for trial in result.trials if trial.state is State.PRUNED}
    assert sorted(reason.partition(":")[0] for reason in reasons.values()) == ["ended at 1/2", *["ended at 1/4"] * 2]
    losses = {trial.number: trial.loss for trial in result.trials}
    runs = {int(stored.data.tags[Tag.TRIAL_NUMBER]): stored for stored in runs_of(place, "trial")}
    for number, reason in reasons.items():
        assert f"its validation loss {losses[number]:.4f} is behind the " in reason
        assert runs[number].data.tags[Tag.PRUNED] == reason
        assert f"Trial {number} {reason}" in caplog.messages
        assert Tag.FAILURE not in runs[number].data.tags
        assert len(result.trials[number].losses) == 1, "the one that it was compared by"


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        # A trial whose process was killed is trained alone.
        (signal.SIGKILL, {PRUNED: 2, INTERRUPTED: 2, COMPLETE: 2}),
        # The others of an interrupted pack are trained together, and are not compared again where they were before.
        (signal.SIGINT, {PRUNED: 3, INTERRUPTED: 2, COMPLETE: 1}),
    ],
)
def test_a_study_that_ends_while_a_pack_is_halved_is_resumed(
    tiny_model: Path, encoder: Path, place: Path, programs: ProgramRunner, how: signal.Signals, expected: object
) -> None:
    command = ["-m", "lorahydra", "train", "-m", *settings(tiny_model, encoder, place, *PACK, "training.save_steps=3")]
    # Between 1/4, after two steps, and 1/2.
    program = programs.start(command, place, environment(HF_HUB_OFFLINE="1"), pause_at="checkpoints/checkpoint-3")
    program.wait_until_paused()
    program.send_signal(how)
    assert program.wait() == (130 if how is signal.SIGINT else -9)
    before = [trial.params for trial in stored_trials(f"sqlite:///{place}/studies.db", "packs")[:4]]
    resumed = programs.run(["-m", "lorahydra", "studies", "resume", "packs"], place, environment(HF_HUB_OFFLINE="1"))
    assert resumed.returncode == 0, resumed.stderr
    assert Counter(ends(place).values()) == expected
    after = stored_trials(f"sqlite:///{place}/studies.db", "packs")
    counted = [trial.params for trial in after if trial.state.name in ("PRUNED", "COMPLETE")]
    assert sorted(map(str, counted)) == sorted(map(str, before))
    for tags in (stored.data.tags for stored in runs_of(place, "trial")):
        assert (Tag.PRUNED in tags) == (tags[Tag.STATE] == State.PRUNED)
