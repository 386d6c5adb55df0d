"""Nothing of a deleted study is left in the store: neither in its tables, nor in free pages, nor in artifacts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.tracking.test_models import train

from lorahydra.config.schema import TrackingConfig
from lorahydra.names import Kind, Tag
from lorahydra.tracking import StoredRuns, delete_runs, register_model, start_run, stored_runs
from lorahydra.tracking.operations import Assessments, trace

PHRASE = "Ms Ada Planted"


def record(config: TrackingConfig, folder: Path, tags: dict[Tag, str], data: str) -> str:
    """A run with the phrase wherever a run can have it; returns its id."""
    with start_run(config, output_dir=folder, kind=Kind.SINGLE, run_name=PHRASE, tags=tags) as run:
        run.params({"data.train_file": PHRASE})
        run.metrics({"eval/combined": 0.5}, step=1)
        run.text(PHRASE, "eval/predictions.json")
        run.dataset(name=PHRASE, digest=data, source=f"/{PHRASE}", rows=3, context="training")
        found = Assessments({"judge_score": 1.0}, PHRASE, PHRASE)
        texts = {"prompt": PHRASE}, {"reason": PHRASE}, {}
        times: Any = {"ok": True, "start_ns": 1, "end_ns": 2}
        run.trace(trace("judge", *texts, previews=(PHRASE, PHRASE), assessments=found, **times))
    return run.run_id


def files_with(phrase: str, folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and phrase.encode() in file.read_bytes()]


def test_nothing_of_a_deleted_study_is_left(start: Callable[..., Any], uri: str, client: Any, tmp_path: Path) -> None:
    config = TrackingConfig(uri=uri, system_metrics=False, retry_seconds=1.0)
    other = TrackingConfig(uri=uri, system_metrics=False, retry_seconds=1.0, experiment_name="other")
    first = record(config, tmp_path / "1", {Tag.STUDY: "it's 7"}, "a" * 36)
    trashed = record(config, tmp_path / "2", {Tag.STUDY: "it's 7"}, "b" * 36)
    client.delete_run(trashed)
    titled = replace(config, tags={Tag.FINE_TUNE: PHRASE})
    with start_run(titled, output_dir=tmp_path / "5", kind=Kind.STUDY, run_name="s", tags={Tag.STUDY: "it's 7"}) as run:
        study = run.run_id
    again = record(other, tmp_path / "3", {Tag.REPRODUCES: first}, "c" * 36)
    kept = train(start, tmp_path / "4")
    register_model(config, kept, "shared", tags={})
    for run in (first, again):
        client.create_model_version("shared", f"/{PHRASE}", run)
    client.create_registered_model("lorahydra-it-s-7", description=PHRASE)
    client.create_model_version("lorahydra-it-s-7", f"/{PHRASE}", first)
    model = client.create_logged_model(client.get_run(kept).info.experiment_id, PHRASE, first, params={"a": PHRASE})
    assert files_with(PHRASE, tmp_path)

    stored = stored_runs(config, ["it's 7"])
    assert set(stored.run_ids) == {first, trashed, again, study}
    assert stored.models == ("lorahydra-it-s-7", "shared")
    assert stored.size == 3 * len(PHRASE)
    delete_runs(config, ["it's 7"])
    assert files_with(PHRASE, tmp_path) == []
    assert [folder for folder in tmp_path.rglob("*") if folder.name in {first, again, model.model_id}] == []
    assert [model.name for model in client.search_registered_models()] == ["shared"]
    assert client.get_model_version_by_alias("shared", "champion").run_id == kept
    assert stored_runs(config, ["it's 7"]) == StoredRuns()
    delete_runs(config, ["it's 7"])
    assert client.get_run(kept).info.lifecycle_stage == "active"


def test_a_store_that_does_not_exist_has_nothing(tmp_path: Path) -> None:
    config = TrackingConfig(uri=f"sqlite:///{tmp_path / 'none.db'}")
    assert stored_runs(config, ["x"]) == StoredRuns()
    delete_runs(config, ["x"])
    assert list(tmp_path.iterdir()) == []
