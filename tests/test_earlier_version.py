"""What an earlier version left behind is of use to this one: studies, runs, adapters, models.

`fixtures/earlier_version.tar.xz` was made by the version whose modules were not in packages yet: a finished study of
two trials with a registered winner, one that was killed in the training of its third trial, and a trial whose judge
could not be reached after the answers were made. The model and the encoder are tiny.
"""

from __future__ import annotations

import json
import sqlite3
import tarfile
from pathlib import Path

import pytest
from tests.judges.wire import KEY, judge_server
from tests.support.programs import ProgramRunner, environment
from tests.sweep.conftest import stored_trials

from lorahydra.config.schema import TrackingConfig
from lorahydra.tracking import find_version, read_run

pytestmark = pytest.mark.slow

MADE_IN = "/tmp/earlier"
ARCHIVE = Path(__file__).with_name("fixtures") / "earlier_version.tar.xz"


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the earlier version worked in."""
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    for path in folder.rglob("*"):
        if path.is_file() and MADE_IN.encode() in (content := path.read_bytes()):
            path.write_bytes(content.replace(MADE_IN.encode(), str(folder).encode()))
    for name in ("mlflow", "studies"):
        with sqlite3.connect(folder / f"{name}.db") as database:
            database.executescript((folder / f"{name}.sql").read_text())
        database.close()
    return folder


@pytest.fixture
def lorahydra(earlier: Path, programs: ProgramRunner) -> Lorahydra:
    return Lorahydra(earlier, programs)


class Lorahydra:
    """The command in the earlier version's folder."""

    def __init__(self, folder: Path, programs: ProgramRunner) -> None:
        self.folder = folder
        self._programs = programs

    def __call__(self, *arguments: str, **variables: str) -> str:
        done = self._programs.run(
            ["-m", "lorahydra", *arguments],
            self.folder,
            environment(HF_HUB_OFFLINE="1", LORAHYDRA_CACHE=str(self.folder / "cache"), COLUMNS="200", **variables),
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr


def test_studies_are_listed_and_shown(lorahydra: Lorahydra) -> None:
    listed = lorahydra("studies", "list")
    assert [line.split()[:4] for line in listed.splitlines() if line.startswith(("finished", "interrupted"))] == [
        ["interrupted", "interrupted", "2", "of"],
        ["finished", "complete", "2", "of"],
    ]
    shown = lorahydra("studies", "show", "finished")
    assert "0.7169" in shown


def test_an_interrupted_study_goes_on_with_the_parameters_of_the_killed_trial(lorahydra: Lorahydra) -> None:
    url = f"sqlite:///{lorahydra.folder}/studies.db"
    before = stored_trials(url, "interrupted")
    said = lorahydra("studies", "resume", "interrupted")
    after = stored_trials(url, "interrupted")
    assert [trial.values for trial in after[:2]] == [trial.values for trial in before[:2]]
    assert after[-1].state.name == "COMPLETE"
    assert after[-1].params == before[2].params
    assert "Best: trial" in said
    version = find_version(
        TrackingConfig(f"sqlite:///{lorahydra.folder}/mlflow.db"), "lorahydra-interrupted", alias="champion"
    )
    assert version is not None


def test_a_recorded_trial_is_reproduced_to_the_last_digit(lorahydra: Lorahydra) -> None:
    champion = find_version(
        TrackingConfig(f"sqlite:///{lorahydra.folder}/mlflow.db"), "lorahydra-finished", alias="champion"
    )
    assert champion is not None
    assert champion.run_id is not None
    said = lorahydra("reproduce", champion.run_id)
    assert "different" not in said
    assert "eval/combined" in said


def test_a_winner_is_found_by_name_loaded_by_mlflow_and_exported(lorahydra: Lorahydra) -> None:
    answered = lorahydra("generate", "finished", "Say red blue 1")
    loaded = lorahydra._programs.run(
        [
            "-c",
            "import lorahydra, mlflow, json\n"
            "mlflow.set_tracking_uri('sqlite:///mlflow.db')\n"
            "model = mlflow.pyfunc.load_model('models:/lorahydra-finished@champion')\n"
            "print(json.dumps(list(model.predict(['Say red blue 1']))))",
        ],
        lorahydra.folder,
        environment(HF_HUB_OFFLINE="1", PYTHONWARNINGS="ignore"),
    )
    assert loaded.returncode == 0, loaded.stderr
    [answer] = json.loads(loaded.stdout.splitlines()[-1])
    assert answer.strip() in answered
    lorahydra("export", "finished", "--to", "exported", "--merged")
    assert (lorahydra.folder / "exported" / "model.safetensors").is_file()


@pytest.mark.service
def test_answers_that_wait_for_a_judge_are_judged(lorahydra: Lorahydra) -> None:
    run_id = json.loads((lorahydra.folder / "outputs/judged/answers.json").read_text())["run_id"]
    with judge_server() as server:
        lorahydra("judges", "rejudge", "outputs/judged", f"judge.base_url={server.openai}", OPENAI_API_KEY=KEY)
    run = read_run(TrackingConfig(f"sqlite:///{lorahydra.folder}/mlflow.db"), run_id)
    assert run.metrics["eval/judge_coverage"] == 1
    assert run.tags["lorahydra.judge_prompt"] == "v1-37aeb5a70aff", "by the words that it began with"
    assert run.metrics["eval/combined"] > 0
