"""What a database of studies says about them."""

from __future__ import annotations

from pathlib import Path

import optuna
from click.testing import CliRunner
from optuna.trial import create_trial

from lorahydra.cli.commands import commands
from lorahydra.errors import StudyError
from lorahydra.names import State
from lorahydra.sweep.catalog import find_study
from lorahydra.sweep.storage import end_lock, open_storage
from lorahydra.sweep.study_store import RESULT, TRIALS


def test_a_study_is_running_while_its_winner_is_named(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    storage = open_storage(url)
    study = optuna.create_study(storage=storage, study_name="one", direction="maximize")
    study.set_user_attr(TRIALS, 1)
    assert find_study("one", url).state is State.INTERRUPTED
    study.add_trial(create_trial(value=0.5))
    with end_lock(storage, "one"):
        assert find_study("one", url).state is State.RUNNING
        failed = CliRunner().invoke(commands, ["studies", "delete", "one", "--storage", url, "--yes"])
        assert isinstance(failed.exception, StudyError)
        assert "study one is running" in str(failed.exception)
    assert find_study("one", url).state is State.INTERRUPTED, "nobody goes on with it"
    study.set_user_attr(RESULT, {"best": 0, "finished": 1})
    with end_lock(storage, "one"):
        assert find_study("one", url).state is State.COMPLETE
    storage.engine.dispose()  # type: ignore[attr-defined]
