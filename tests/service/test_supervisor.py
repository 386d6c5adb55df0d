"""What becomes of a job whose process cannot be started."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.waiting import wait_for

from lorahydra.errors import OutputError
from lorahydra.service.processes import JobProcess
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
