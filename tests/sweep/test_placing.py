"""Workers that a launcher places: their jobs, what is waited for, and which databases they may share."""

from __future__ import annotations

import os
import signal
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from tests.support.waiting import wait_for

from lorahydra.config.compat import outcome
from lorahydra.errors import ConfigError, StudyError
from lorahydra.sweep import cancelling, submitit_jobs
from lorahydra.sweep.cancelling import cancel, cancelled_with, ending_when_cancelled
from lorahydra.sweep.shared_stores import check_shared
from lorahydra.sweep.storage import open_storage
from lorahydra.sweep.submitit_jobs import ARRAYS, jobs_of, wait_for_orphans, waiting_for_jobs
from lorahydra.sweep.worker_job import RESTARTS, WorkerJob
from lorahydra.sweep.workers import places_elsewhere
from lorahydra.utils.network_files import network_file_system
from lorahydra.utils.processes import this_process

SLURM = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"
LOCAL = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher"
RAY = "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher"
POSTGRESQL = "postgresql://me@host/studies"


@pytest.fixture
def job_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job is Hydra's second one."""
    monkeypatch.setattr(HydraConfig, "get", lambda: SimpleNamespace(job=SimpleNamespace(num=1)))


def worker(code: str, folder: Path | str = ".", storage: str = "") -> WorkerJob:
    return WorkerJob(("-c", code), str(folder), storage, 3, {"MORE": "1"}, is_local=False)


@pytest.mark.usefixtures("job_number")
def test_a_worker_knows_its_place_and_its_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code = (
        "import os; print(os.getcwd(), *(os.environ.get(n) for n in "
        "('LORAHYDRA_WORKER', 'LORAHYDRA_WORKERS', 'MORE', 'LORAHYDRA_STUDY_STORE', 'OMP_NUM_THREADS')))"
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "5")
    monkeypatch.setenv("LORAHYDRA_STUDY_STORE", "postgresql://me:secret@host/studies")
    worker(code, tmp_path, POSTGRESQL)(OmegaConf.create())
    worker(code, tmp_path / "only there", "postgresql://me@other/studies")(OmegaConf.create())
    assert capfd.readouterr().out.splitlines() == [
        f"{tmp_path} 2 3 1 postgresql://me:secret@host/studies 5",
        f"{Path.cwd()} 2 3 1 postgresql://me@other/studies 5",
    ]
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")
    worker(code, tmp_path)(OmegaConf.create())
    assert capfd.readouterr().out.endswith("4,2\n"), "as OpenMP takes it for nested regions"
    assert "secret" not in repr(worker(code, tmp_path, POSTGRESQL)), "it is written to files"


@pytest.mark.usefixtures("job_number")
def test_a_worker_that_fails_says_why_and_one_that_is_killed_starts_again(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="worker 2 of the study ended with exit code 3: the reason") as caught:
        worker("import sys; print('lorahydra: the reason'); sys.exit(3)")(OmegaConf.create())
    assert caught.value.exit_code == 3
    killed = f"import os; open({str(tmp_path / 'starts')!r}, 'a').write('x'); os.kill(os.getpid(), 9)"
    with pytest.raises(StudyError, match="exit code -9"):
        worker(killed)(OmegaConf.create())
    assert (tmp_path / "starts").read_text() == "x" * (RESTARTS + 1)


@pytest.mark.usefixtures("job_number")
def test_a_job_that_must_end_lets_its_worker_give_its_trial_back(tmp_path: Path) -> None:
    class TimeLimitError(Exception):
        pass

    def announce(*_: Any) -> None:
        raise TimeLimitError

    before = signal.signal(signal.SIGUSR2, announce)
    ready, ended = tmp_path / "ready", tmp_path / "ended"
    code = (
        f"import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: (open({str(ended)!r}, 'w'), sys.exit(130)))\n"
        f"open({str(ready)!r}, 'w')\nsignal.pause()"
    )

    def limit() -> None:
        wait_for(ready.exists)
        os.kill(os.getpid(), signal.SIGUSR2)

    threading.Thread(target=limit).start()
    try:
        with pytest.raises(TimeLimitError):
            worker(code)(OmegaConf.create())
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert ended.exists()


def test_a_job_that_is_killed_does_not_hide_what_became_of_the_others(tmp_path: Path) -> None:
    submitit = pytest.importorskip("submitit", reason="the extra slurm is not installed")
    executor = submitit.LocalExecutor(folder=tmp_path / "jobs")
    first, second = executor.submit(time.sleep, 5), executor.submit(abs, -1)
    told: list[Any] = []
    with waiting_for_jobs(False, lambda: False, told.append):
        assert [job.results()[0].return_value for job in (first, second)] == [None, None], "nobody waits"
    assert told == [first, second]
    first._process.kill()
    with waiting_for_jobs(True, lambda: False, told.append):
        [killed], [done] = first.results(), second.results()
    assert done == 1
    assert "was ended from outside" in str(outcome(killed))
    last = executor.submit(abs, -1)
    with waiting_for_jobs(True, lambda: True, told.append):
        assert last.results(), "once the study has its winner, nobody waits for a job"
    for job in (first, second, last):
        job._process.wait()


@pytest.mark.parametrize(
    ("launcher", "elsewhere"),
    [
        ({"_target_": SLURM}, True),
        ({"_target_": LOCAL}, False),
        ({"_target_": "hydra_plugins.mine.MyLauncher"}, True),
        ({"_target_": RAY, "ray": {"init": {"address": None}}}, False),
        ({"_target_": RAY, "ray": {"init": {"address": "10.0.0.1:6379"}}}, True),
    ],
)
def test_sqlite_is_for_workers_of_one_machine(launcher: dict[str, Any], elsewhere: bool) -> None:
    def check(storage: str | None, uri: str) -> None:
        hydra = {"launcher": launcher, "runtime": {"choices": {"hydra/launcher": "it"}}}
        settings: Any = SimpleNamespace(config=OmegaConf.create({"hydra": hydra}), storage=storage)
        check_shared(settings, uri, 2)

    assert places_elsewhere(OmegaConf.create(launcher)) is elsewhere
    check(POSTGRESQL, "http://127.0.0.1:5000")
    if not elsewhere:
        check("sqlite:///studies.db", "sqlite:///mlflow.db")
        return
    with pytest.raises(
        ConfigError, match=r"hydra.sweeper.storage=sqlite:///studies.db .* give hydra.sweeper.storage=pos"
    ):
        check("sqlite:///studies.db", "http://127.0.0.1:5000")
    with pytest.raises(
        ConfigError, match=r"tracking.uri=sqlite:///mlflow.db is a SQLite file, and workers of hydra/laun"
    ):
        check(POSTGRESQL, "sqlite:///mlflow.db")


def test_a_network_file_system_is_recognised(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/sda / ext4 rw 0 0\nserver:/home /net nfs4 rw 0 0\n"
        "//nas/data /my\\040disk cifs rw 0 0\ntmpfs /net/fast tmpfs rw 0 0\n"
    )
    kinds = {
        "/data/me": None,
        "/net/me/studies.db": "nfs4",
        "/net/fast/x": None,
        "/my disk/x": "cifs",
        "/network": None,
    }
    assert {path: network_file_system(Path(path), mounts) for path in kinds} == kinds
    assert network_file_system(tmp_path, tmp_path / "missing") is None


def test_a_cancelled_study_interrupts_its_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancelling, "SECONDS_BETWEEN_LOOKS", 0.01)
    study = optuna.create_study(study_name="one", storage=open_storage(f"sqlite:///{tmp_path}/studies.db"))
    with pytest.raises(KeyboardInterrupt), ending_when_cancelled(study):
        cancel(study)
        signal.pause()
    looks = []

    def look(study: optuna.Study) -> str:
        looks.append(cancelled_with(study))
        return looks[-1]

    monkeypatch.setattr(cancelling, "cancelled_with", look)
    with ending_when_cancelled(study):
        wait_for(lambda: len(looks) > 3)  # it goes on after it was cancelled
    monkeypatch.setenv("LORAHYDRA_WORKER", "1")  # it was queued before the study was cancelled
    with pytest.raises(KeyboardInterrupt), ending_when_cancelled(study):
        pytest.fail("it begins")


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script in place of Slurm's program, to be filled."""
    script = tmp_path / "squeue"
    script.touch(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return script


@pytest.fixture
def orphaned() -> Any:
    """A study whose command was killed."""
    dead = this_process() | {"pid": 2**22 + 1}
    return SimpleNamespace(study_name="s", user_attrs={ARRAYS: [{"array": "7", "scripts": "/x", "waits": dead}]})


def test_a_slurm_that_does_not_answer_is_not_waited_for_for_ever(
    squeue: Path, orphaned: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    squeue.write_text("#!/bin/sh\necho 'Unable to contact slurm controller' >&2; exit 1\n")
    clock = [0.0]
    passing = SimpleNamespace(monotonic=lambda: clock[0], sleep=lambda seconds: clock.append(clock.pop() + seconds))
    monkeypatch.setattr(submitit_jobs, "time", passing)
    with pytest.raises(StudyError, match="Slurm does not answer") as raised:
        wait_for_orphans(orphaned, lambda: clock[0] > 3600)
    assert raised.value.exit_code == 3
    assert clock[0] == pytest.approx(600, abs=20)


def test_a_job_that_hangs_in_its_end_has_ended(squeue: Path, orphaned: Any) -> None:
    ends = {"7_0": timedelta(hours=1), "7_1": timedelta(seconds=9)}
    times = {number: (datetime.now() - ago).isoformat(timespec="seconds") for number, ago in ends.items()}
    lines = [*(f"{number}|COMPLETING|{end}|/x/a.sh" for number, end in times.items()), "7_2|PENDING|N/A|/x/a.sh"]
    squeue.write_text("#!/bin/sh\ncat <<END\n" + "\n".join(lines) + "\nEND\n")
    assert jobs_of(orphaned, orphans=True) == {"7_1": "COMPLETING", "7_2": "PENDING"}
