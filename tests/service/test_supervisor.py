"""What becomes of a job whose process cannot be started, or has left its study to others."""

from __future__ import annotations

import time
from typing import Any

import pytest
from tests.support.waiting import wait_for

from lorahydra.errors import OutputError
from lorahydra.names import State
from lorahydra.service import supervisor
from lorahydra.service.processes import ENDED_FILE, JobProcess, write_json
from lorahydra.service.service import Service
from lorahydra.service.views import FineTuneParams


def test_a_job_that_cannot_be_started_says_why(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OutputError("the disk is full")

    monkeypatch.setattr(JobProcess, "start", full)
    service.supervisor._workers = 1
    job = service.jobs.start(123, FineTuneParams(False, None, "tiny", 5))
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
    job = service.jobs.start(123, FineTuneParams(False, None, "tiny", 5))

    def look_twice() -> None:
        before = len(looks)
        wait_for(lambda: service.supervisor.wake() or len(looks) > before + 1)

    look_twice()
    assert service.jobs.get(job.id).ended is None
    found[0] = State.INTERRUPTED  # the others were killed: their trials are left to be run
    wait_for(lambda: service.jobs.get(job.id).state == "complete")
    assert attempts == [1, 2]
