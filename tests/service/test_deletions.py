"""Deleting projects, datasets and fine-tunes: what goes, what stays, what is refused, and what survives a kill."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from sqlalchemy import update
from tests.service.served import refused
from tests.support.waiting import SECONDS, wait_for

from lorahydra.data.report import DataReport, SourceReport, SplitReport
from lorahydra.errors import OutputError
from lorahydra.service.database import Job
from lorahydra.service.errors import InvalidError, NotFoundError
from lorahydra.service.processes import hold
from lorahydra.service.service import Service
from lorahydra.service.views import FineTuneParams, JobState, Kind

pytestmark = pytest.mark.slow

PHRASE = "Ms Ada Planted, 4711 Zanzibar Road"
DAY = 24 * 3600.0
PARAMS = FineTuneParams(use_llm_judge=False, base_model_name="tiny", n_trials=5)


def add_dataset(service: Service, project: int, name: str = PHRASE) -> int:
    """A dataset with its file, as an upload leaves them."""
    file = service.config.folder / "datasets" / f"dataset-{time.monotonic_ns()}.jsonl"
    row = f'{{"question": "{PHRASE}", "answer": "yes"}}\n'
    report = DataReport(
        [SourceReport(name, 10, "question_answer", {}, [], [], 0, 0, 0, 0)],
        [SplitReport(split, name, "", rows, 0) for split, rows in (("train", 8), ("validation", 1), ("test", 1))],
        warnings=[PHRASE],
    ).to_dict()
    upload = SimpleNamespace(name=name, path=file, size=50, keep=lambda: file.write_text(row), check=lambda *_: report)
    return service.datasets.keep(project, upload).id  # type: ignore[arg-type]


def add_job(service: Service, project: int, state: JobState = JobState.COMPLETE, name: str = PHRASE) -> int:
    """A fine-tune on the newest dataset of a project, with a folder and a cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service.jobs._measurer, "measure", lambda *_: None)  # it would load a tokenizer
        job = service.jobs.start(project, PARAMS, name=name)
    set_state(service, job.id, state)
    folder = Path(job.folder)
    (folder / "outputs").mkdir(parents=True)
    (folder / "outputs" / "answers.json").write_text(PHRASE * 100)
    cache = service.config.folder / "caches" / str(job.dataset or "demo") / "judge"
    cache.mkdir(parents=True, exist_ok=True)
    (cache / "verdicts.sqlite").write_text(PHRASE)
    return job.id


def set_state(service: Service, job: int, state: JobState) -> None:
    with service.jobs._database.changing() as session:
        session.execute(update(Job).where(Job.id == job).values(state=state, ended=time.time(), failure=PHRASE))


def files_with(phrase: str, folder: Path) -> list[Path]:
    found = [file for file in folder.rglob("*") if file.is_file() and phrase.encode() in file.read_bytes()]
    return [*found, *(path for path in folder.rglob("*") if phrase in path.name)]


def wait_for_end(service: Service, deletion: int) -> None:
    wait_for(lambda: service.deletions.get(deletion).ended is not None)


def test_nothing_of_a_project_is_left(service: Service, client: httpx.Client) -> None:
    project = service.projects.create(PHRASE).id
    other = service.projects.create("Other").id
    add_dataset(service, project)
    add_dataset(service, other, "other.jsonl")
    first, second = add_job(service, project), add_job(service, project, JobState.FAILED)
    kept = add_job(service, other, name="kept")
    planned = client.get(f"/projects/{project}/deletion").json()
    assert [one["id"] for one in planned["fine_tunes"]] == [first, second]
    assert [one["name"] for one in planned["datasets"]] == [PHRASE]
    assert planned["size"] >= 2 * 100 * len(PHRASE)
    assert files_with(PHRASE, service.config.folder)

    answer = client.delete(f"/projects/{project}", params={"digest": planned["digest"]})
    assert answer.status_code == 202, answer.text
    assert answer.json()["size"] == planned["size"]
    for path in (f"/projects/{project}", f"/fine-tunes/{first}", f"/datasets/{planned['datasets'][0]['id']}"):
        assert client.get(path).status_code == 404
    wait_for_end(service, answer.json()["id"])
    assert not (service.config.folder / "jobs" / str(first)).exists()
    # What is another project's stays; its own rows hold the phrase as well.
    left = files_with(PHRASE, service.config.folder)
    assert {path.relative_to(service.config.folder).parts[0] for path in left} == {
        "datasets",
        "jobs",
        "caches",
        "service.db",
    }
    assert client.get(f"/fine-tunes/{kept}").json()["name"] == "kept"
    last = service.deletions.delete(Kind.PROJECT, other)
    wait_for_end(service, last.id)
    assert files_with(PHRASE, service.config.folder) == []
    # Ids are never given again: they stand in bookmarks and in names of studies.
    assert service.projects.create("Next").id == other + 1
    assert service.jobs.start(other + 1, PARAMS).id == kept + 1


def test_a_fine_tune_goes_without_what_its_links_point_to(service: Service, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_text("x")
    job, neighbour = add_job(service, 123), add_job(service, 123)
    folder = service.config.folder / "jobs" / str(job)
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    wait_for_end(service, service.deletions.delete(Kind.FINE_TUNE, job).id)
    assert not folder.exists()
    assert (tmp_path / "elsewhere" / "precious").exists()
    # The cache of the data is needed until the last one is gone.
    cache = service.config.folder / "caches" / "demo"
    assert cache.exists()
    folder = folder.with_name(str(neighbour))
    for path in folder.rglob("*.json"):
        path.unlink()
    (folder / "outputs").rmdir()
    folder.rmdir()
    folder.symlink_to(tmp_path / "elsewhere")
    wait_for_end(service, service.deletions.delete(Kind.FINE_TUNE, neighbour).id)
    assert not folder.is_symlink()
    assert not cache.exists()
    assert (tmp_path / "elsewhere" / "precious").exists()


def test_what_is_refused(service: Service, client: httpx.Client) -> None:
    project = service.projects.create("Support").id
    dataset = add_dataset(service, project, "rows.jsonl")
    job = add_job(service, project, JobState.CANCELLED, "Night run")
    with hold(service.config.folder / "jobs" / str(job), SECONDS):  # as its process would
        set_state(service, job, JobState.RUNNING)
        for path in (f"/fine-tunes/{job}", f"/datasets/{dataset}?with_fine_tunes=true", f"/projects/{project}"):
            assert f"fine-tune {job} (Night run) is running" in refused(client.delete(path), 409, "still_running")
        set_state(service, job, JobState.CANCELLED)
    line = refused(client.delete(f"/datasets/{dataset}"), 409, "dataset_in_use")
    assert f"dataset {dataset} is used by fine-tune {job} (Night run)" in line
    # One that was started after the plan was shown is not taken along.
    digest = client.get(f"/datasets/{dataset}/deletion").json()["digest"]
    add_job(service, project, JobState.CANCELLED)
    path = f"/datasets/{dataset}?with_fine_tunes=true"
    refused(client.delete(f"{path}&digest={digest}"), 409, "deletion_changed")
    refused(client.delete(path, headers={"Origin": "https://evil.example"}), 403, "cross_site")
    refused(client.delete(f"/projects/{project}?digest=../.."), 422, "invalid")
    refused(client.delete("/fine-tunes/99"), 404, "fine_tune_not_found")
    refused(client.get("/deletions/1"), 404, "deletion_not_found")
    assert client.delete("/fine-tunes/..%2f1").status_code in (404, 405)
    assert service.jobs.get(job).state is JobState.CANCELLED
    assert client.delete(path).status_code == 202
    with pytest.raises(NotFoundError):
        service.datasets.get(dataset)


def test_a_deletion_goes_on_after_a_kill(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    job = add_job(service, 123)

    def killed(*_: Any) -> None:
        raise OutputError("the store is busy")

    with monkeypatch.context() as patch:
        patch.setattr("lorahydra.service.results.Stores.delete", killed)
        deletion = service.deletions.delete(Kind.FINE_TUNE, job)
        wait_for(lambda: service.deletions.get(deletion.id).fault == "the store is busy")
        service.close()
    again = Service(service.config)
    again.open()
    try:
        wait_for_end(again, deletion.id)
        assert again.deletions.get(deletion.id).fault is None
        assert files_with(PHRASE, service.config.folder) == []
    finally:
        again.close()


def test_kept_runs_go_with_the_dataset(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    project = service.projects.create("Support").id
    dataset = add_dataset(service, project)
    job, other = add_job(service, project), add_job(service, project)
    deleted: list[tuple[list[str], list[str]]] = []
    monkeypatch.setattr(service.stores, "delete", lambda studies, runs: deleted.append((studies, runs)))
    wait_for_end(service, service.deletions.delete(Kind.FINE_TUNE, job, keep_runs=True).id)
    wait_for_end(service, service.deletions.delete(Kind.DATASET, dataset, with_fine_tunes=True).id)
    wait_for_end(service, service.deletions.delete(Kind.PROJECT, project).id)
    first, second = f"fine-tune-{job}", f"fine-tune-{other}"
    assert deleted == [([first], []), ([second], [second, first]), ([], [])]


def test_a_file_that_arrives_in_a_deleted_project_is_not_kept(service: Service) -> None:
    project = service.projects.create("Support").id
    service.deletions.delete(Kind.PROJECT, project)
    with pytest.raises(NotFoundError):
        add_dataset(service, project)
    assert list((service.config.folder / "datasets").iterdir()) == []


def test_a_file_that_waits_in_a_deleted_project_is_not_kept(service: Service) -> None:
    project = service.projects.create("Support").id
    upload = service.datasets.upload("multipart/form-data; boundary=x")
    service.deletions.delete(Kind.PROJECT, project)

    def check(*_: Any) -> Any:
        refusal = InvalidError("its columns have other names")
        refusal.offer = {"columns": []}
        raise refusal

    with pytest.MonkeyPatch.context() as patch, pytest.raises(NotFoundError), upload:
        patch.setattr(upload, "check", check)
        service.datasets.keep_or_hold(project, upload)
    assert list((service.config.folder / "datasets").iterdir()) == []


def test_a_cache_that_appears_during_a_deletion_goes_too(service: Service) -> None:
    stray = service.config.folder / "caches" / "7"
    stray.mkdir(parents=True)
    wait_for_end(service, service.deletions.delete(Kind.FINE_TUNE, add_job(service, 123)).id)
    assert not stray.exists()


def test_retention(service: Service) -> None:
    project = service.projects.create("Support").id
    used, job = add_dataset(service, project), add_job(service, project)
    queued = add_job(service, project, JobState.QUEUED)
    deletions = type(service.deletions)(
        service.deletions._database, service.config.folder, service.stores, lambda: None, retention_days=30
    )
    old = service.jobs.get(job)
    assert old.ended is not None
    assert service.deletions.expires(old) is None
    expires = deletions.expires(old)
    assert expires is not None
    assert (expires - old.ended).days == 30
    deletions.expire(time.time() + 29 * DAY)
    assert service.jobs.get(job).id == job
    deletions.expire(time.time() + 31 * DAY)
    with pytest.raises(NotFoundError):
        service.jobs.get(job)
    assert service.datasets.get(used).id == used, "it is used"
    set_state(service, queued, JobState.COMPLETE)
    deletions.expire(time.time() + 31 * DAY)
    with pytest.raises(NotFoundError):
        service.datasets.get(used)
