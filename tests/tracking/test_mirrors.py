"""Copies of runs for TensorBoard and W&B, read with their own readers."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorahydra.config.schema import TrackingConfig
from lorahydra.errors import ConfigError
from lorahydra.names import Kind, State, Tag
from lorahydra.tracking import TrackedRun, check_store, start_run
from lorahydra.tracking.mirrors import Mirrors
from lorahydra.tracking.operations import metrics
from lorahydra.tracking.spool import Header, Spool

StartRun = Callable[..., TrackedRun]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values by metric, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    names = events.Tags()["scalars"]
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in names}


def wandb_records(folder: Path) -> list[Any]:
    """All records of the only offline run of a folder. Its file is a log of LevelDB with a header of its own."""
    from wandb.proto.wandb_internal_pb2 import Record

    [file] = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    data = file.read_bytes()
    assert data.startswith(b":W&B")
    records, begun, place = [], b"", 7
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:  # the end of a block
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        begun += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            records.append(Record.FromString(begun))
            begun = b""
    return records


@pytest.mark.slow
def test_both_have_the_metrics_and_params_of_runs_that_go_on_at_once(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.setenv(name, "")  # as if it were not set
    config = TrackingConfig(uri=uri, system_metrics=False, mirrors=["tensorboard", "wandb"])
    folders = [tmp_path / "0", tmp_path / "1"]
    runs = [
        start_run(config, output_dir=folder, kind=Kind.TRIAL, run_name=f"trial {folder.name}", tags={Tag.STUDY: "s"})
        for folder in folders
    ]
    for number, run in enumerate(runs):
        run.params({"lora.r": 8 + number, "model.name_or_path": "tiny"})
    for step in range(3):
        for number, run in enumerate(runs):
            run.metrics({"train/loss": number + step / 4}, step=step)
    for run in runs:
        assert run.finish(State.COMPLETE) == 0

    for number, folder in enumerate(folders):
        assert scalars(folder) == {"train/loss": [(step, number + step / 4) for step in range(3)]}
        records = wandb_records(folder)
        [begun] = [record.run for record in records if record.WhichOneof("record_type") == "run"][:1]
        assert (begun.run_id, begun.display_name, begun.run_group) == (runs[number].run_id, f"trial {number}", "s")
        told = [{item.key or "/".join(item.nested_key): item.value_json for item in r.history.item} for r in records]
        rows = [(row["step"], float(row["train/loss"])) for row in told if "train/loss" in row]
        assert rows == [(str(step), number + step / 4) for step in range(3)]
        configured = {item.key: item.value_json for r in records for item in r.config.update}
        assert configured["lora.r"] == f'"{8 + number}"'


def test_what_was_written_is_not_written_again_by_the_process_that_takes_over(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path)
    header = Header("sqlite:///x", "0" * 32, "demo", 0, mirrors=["tensorboard"])
    first = Mirrors(spool, header)
    for step in range(2):
        for operation in metrics({"loss": 1.0 + step}, step):
            spool.append(operation)
    first.step()
    spool.close()  # as if the process had died

    taken = Spool.open(spool.folder)
    for operation in metrics({"loss": 3.0}, 2):
        taken.append(operation)
    second = Mirrors(taken, header)
    second.step()
    second.close()
    taken.close()
    assert scalars(tmp_path) == {"loss": [(0, 1.0), (1, 2.0), (2, 3.0)]}


def test_a_mirror_that_fails_costs_a_warning(
    start: StartRun, client: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tensorboard").write_text("in the way")
    with caplog.at_level(logging.WARNING), start(mirrors=["tensorboard"]) as run:
        run.metrics({"loss": 1.0}, step=0)
    assert client.get_run(run.run_id).data.metrics == {"loss": 1.0}
    assert [r.message for r in caplog.records if "for tensorboard is not complete" in r.message]


def test_the_run_of_a_study_has_no_copy(uri: str, tmp_path: Path) -> None:
    config = TrackingConfig(uri=uri, system_metrics=False, mirrors=["tensorboard"])
    with start_run(config, output_dir=tmp_path / "out", kind=Kind.STUDY, run_name="s") as run:
        run.metrics({"best": 1.0})
    assert not (tmp_path / "out" / "tensorboard").exists()


def test_mirrors_are_checked_before_anything_begins(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="'comet' is not one of tensorboard, wandb"):
        check_store(TrackingConfig(uri=uri, mirrors=["comet"]))

    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r"needs wandb: pip install 'lorahydra\[wandb\]'"):
        check_store(TrackingConfig(uri=uri, mirrors=["wandb"]))
