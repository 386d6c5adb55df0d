"""What becomes of a job whose process cannot be started, or has left its study to others."""

from __future__ import annotations

import dataclasses
import time
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import update
from tests.support.waiting import wait_for

from lorahydra.errors import OutputError
from lorahydra.names import State
from lorahydra.service import supervisor
from lorahydra.service.database import Job
from lorahydra.service.errors import ConflictError
from lorahydra.service.processes import ENDED_FILE, JobProcess, write_json
from lorahydra.service.service import Service
from lorahydra.service.views import FineTuneParams, JobState, Kind

PARAMS = FineTuneParams(False, None, "tiny", 5)


def set_job(service: Service, job: int, **values: Any) -> None:
    with service.jobs._database.changing() as session:
        session.execute(update(Job).where(Job.id == job).values(**values))


def test_a_job_that_cannot_be_started_says_why(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OutputError("the disk is full")

    monkeypatch.setattr(JobProcess, "start", full)
    service.supervisor._workers = 1
    job = service.jobs.start(123, PARAMS)
    wait_for(lambda: service.jobs.get(job.id).ended is not None)
    failed = service.jobs.get(job.id)
    assert (failed.state, failed.failure, failed.seconds) == ("failed", "it cannot be started: the disk is full", 0)
    assert service.jobs.resume(job.id).can_cancel


def test_a_job_is_not_complete_while_others_run_its_study(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def end_well(process: JobProcess, attempt: int, *_: Any) -> None:
        process.folder.mkdir(parents=True, exist_ok=True)
        end = {"attempt": attempt, "exit_code": 0, "failure": None, "at": time.time()}
        write_json(process.folder / ENDED_FILE, end)
        attempts.append(attempt)
        found[0] = State.RUNNING if attempt == 1 else State.COMPLETE

    attempts: list[int] = []
    found, looks = [State.RUNNING], []
    monkeypatch.setattr(supervisor, "PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr(JobProcess, "start", end_well)
    monkeypatch.setattr(JobProcess, "was_started", lambda *_: True)
    monkeypatch.setattr(type(service.stores), "state", lambda *_: looks.append(1) or found[0])
    monkeypatch.setattr(type(service.stores), "end_workers", lambda *_, at_once: 0)
    service.supervisor._workers = 1
    job = service.jobs.start(123, PARAMS)

    def look_twice() -> None:
        before = len(looks)
        wait_for(lambda: service.supervisor.wake() or len(looks) > before + 1)

    look_twice()
    assert service.jobs.get(job.id).ended is None
    found[0] = State.INTERRUPTED  # the others were killed: their trials are left to be run
    wait_for(lambda: service.jobs.get(job.id).state == "complete")
    assert attempts == [1, 2]


def test_servers_that_share_stores_leave_each_others_studies_alone(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = f"sqlite:///{service.config.folder / 'shared.db'}"
    deleted: list[tuple[list[str], list[str]]] = []
    monkeypatch.setattr(type(service.stores), "recorded", lambda *_: SimpleNamespace(run_ids=[], size=0, models=[]))
    monkeypatch.setattr(type(service.stores), "delete", lambda _, studies, runs: deleted.append((studies, runs)))

    def opened(name: str, **options: str) -> Service:
        made = Service(dataclasses.replace(service.config, folder=service.config.folder / name, **options))
        made.open()
        return made

    alone = service.jobs.start(123, PARAMS)
    assert alone.study == f"fine-tune-{alone.id}"
    with closing(opened("one", tracking_uri=shared)) as one, closing(opened("two", studies=shared)) as two:
        mine, its = one.jobs.start(123, PARAMS), two.jobs.start(123, PARAMS)
        assert mine.id == its.id
        assert mine.study != its.study
        assert one.jobs.find(mine.study) == one.jobs.find(f"fine-tune-{mine.id}") == mine.id
        assert one.jobs.find(its.study) is None
        old = one.jobs.start(123, PARAMS).id
        set_job(one, old, study=None)  # as an earlier version created it
    with closing(opened("one", studies=shared)) as one:
        names = [mine.study, f"fine-tune-{old}"]
        assert [one.jobs.get(number).study for number in (mine.id, old)] == names
        word = mine.study.removesuffix(str(mine.id))
        assert one.jobs.start(123, PARAMS).study == f"{word}{old + 1}"
        for keep_runs in (True, False):
            one.deletions.delete(Kind.FINE_TUNE, mine.id if keep_runs else old, keep_runs=keep_runs)
        one.deletions.delete(Kind.PROJECT, 123)
        wait_for(lambda: len(deleted) == 3)
    last = f"{word}{old + 1}"
    assert deleted == [([mine.study], []), ([names[1]], [names[1]]), ([last], [last, mine.study])]


def test_a_job_that_is_queued_again_is_cancelled_with_its_workers(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, asked = [1], []
    monkeypatch.setattr(supervisor, "PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr(type(service.stores), "state", lambda *_: State.INTERRUPTED)
    monkeypatch.setattr(type(service.stores), "end_workers", lambda _, study, at_once: asked.append(study) or left[0])
    job = service.jobs.start(123, PARAMS)
    set_job(service, job.id, crashes=1, attempt=1)
    with pytest.raises(ConflictError, match="running: cancel first"):
        service.deletions.delete(Kind.FINE_TUNE, job.id)
    cancelled = time.time()
    assert service.jobs.cancel(job.id).state == "cancelling"
    wait_for(lambda: service.supervisor.wake() or asked)
    assert (service.jobs.get(job.id).state, asked[0]) == ("cancelling", job.study)
    left[0] = 0
    wait_for(lambda: service.supervisor.wake() or service.jobs.get(job.id).ended is not None)
    ended = service.jobs.get(job.id)
    assert (ended.state, ended.resumptions) == ("cancelled", 1)
    assert ended.ended is not None
    assert ended.ended.timestamp() > cancelled
    # Its process has ended well, and its workers have not.
    end = {"attempt": 1, "exit_code": 0, "failure": None, "at": time.time()}
    write_json(service.config.folder / "jobs" / str(job.id) / ENDED_FILE, end)
    set_job(service, job.id, state=JobState.CANCELLING)
    wait_for(lambda: service.supervisor.wake() or service.jobs.get(job.id).state != "cancelling")
    assert service.jobs.get(job.id).state == "cancelled"
    never = service.jobs.start(123, PARAMS).id
    assert service.jobs.cancel(never).state == "cancelled"
