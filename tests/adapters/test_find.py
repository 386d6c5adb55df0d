"""An adapter found by whatever a user calls it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from lorahydra.adapters.find import FoundAdapter, find_adapter, store_address
from lorahydra.config.schema import TrackingConfig
from lorahydra.errors import LorahydraError, ModelError, TrackingError
from lorahydra.names import ADAPTER_DIR, METADATA_FILE, Kind, Tag
from lorahydra.tracking import register_model, registered_name, start_run

REGISTERED = registered_name("lorahydra-моя студия")


@dataclass(frozen=True)
class Store:
    """A store with a study of two trials, of which the second won."""

    uri: str
    study: str
    trials: tuple[str, str]
    empty: str
    """A run without an adapter."""
    config: TrackingConfig


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_adapter: Path, mlflow_database: Path) -> Store:
    folder = tmp_path_factory.mktemp("store")
    shutil.copy(mlflow_database, folder)
    config = TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db", system_metrics=False)
    trials = []
    with start_run(config, output_dir=folder / "study", kind=Kind.STUDY, run_name="моя студия") as study:
        for number in range(2):
            adapter = shutil.copytree(tiny_adapter, folder / f"{number}" / ADAPTER_DIR)
            (adapter / "base").mkdir()
            (adapter / "base" / "model.safetensors").write_bytes(b"0" * 100)
            with start_run(
                config,
                output_dir=folder / f"{number}",
                kind=Kind.TRIAL,
                run_name=f"{number}: tiny",
                parent_run_id=study.run_id,
            ) as run:
                content = json.loads((adapter / METADATA_FILE).read_text("utf-8")) | {"run_id": run.run_id}
                (adapter / METADATA_FILE).write_text(json.dumps(content), "utf-8")
                run.artifact(adapter, ADAPTER_DIR)
            trials.append(run.run_id)
        study.tags({Tag.BEST_RUN: trials[1]})
        study.metrics({"test/combined": 0.5})
    with start_run(config, output_dir=folder / "empty", kind=Kind.SINGLE, run_name="empty") as empty:
        pass
    register_model(config, trials[0], "lorahydra-моя студия", tags={})
    register_model(config, trials[1], "lorahydra-моя студия", tags={})
    return Store(config.uri, study.run_id, (trials[0], trials[1]), empty.run_id, config)


def found(name: str, store: Store | None = None, *, record: bool = False) -> tuple[FoundAdapter, str | None]:
    """What was found, and the run that its own file names."""
    with find_adapter(name, uri=store.uri if store else None, record=record) as adapter:
        assert (adapter.folder / "adapter_model.safetensors").is_file()
        run_id = json.loads((adapter.folder / METADATA_FILE).read_text("utf-8"))["run_id"]
    return adapter, run_id


def test_a_folder_needs_no_store(tiny_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "carrier-pigeon://x")
    for record in (False, True):
        adapter, _ = found(str(tiny_adapter), record=record)
        assert adapter == FoundAdapter(str(tiny_adapter), tiny_adapter)
    assert not list(tmp_path.iterdir())
    monkeypatch.chdir(tiny_adapter.parent)
    assert found(tiny_adapter.name)[0].folder == Path(tiny_adapter.name)


def test_a_folder_s_run_is_found_where_the_store_has_it(
    store: Store, tiny_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(tiny_adapter, tmp_path / "copy")
    for run_id, recorded in ((store.trials[1], True), ("0" * 32, False), ("../x", False), (5, False)):
        content = json.loads((folder / METADATA_FILE).read_text("utf-8")) | {"run_id": run_id}
        (folder / METADATA_FILE).write_text(json.dumps(content), "utf-8")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
        adapter, _ = found(str(folder), record=True)
        assert (adapter.run is not None) is recorded
        assert not recorded or (adapter.run is not None and adapter.run.run_id == run_id)
        assert found(str(folder))[0].run is None


def test_a_run_is_its_adapter_and_a_study_its_best(store: Store) -> None:
    adapter, run_id = found(store.trials[0], store)
    assert run_id == store.trials[0]
    assert adapter.run is not None
    assert adapter.run.run_id == store.trials[0]
    assert adapter.study is None, "it did not win"
    assert not adapter.folder.exists(), "the copy is gone"
    for name in (store.trials[1], store.study):
        adapter, run_id = found(name, store)
        assert run_id == store.trials[1]
        assert adapter.study is not None
        assert adapter.study.metrics["test/combined"] == 0.5


def test_only_the_adapter_is_fetched(store: Store) -> None:
    with find_adapter(store.trials[0], uri=store.uri) as adapter:
        names = sorted(entry.name for entry in adapter.folder.iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors", METADATA_FILE]


@pytest.mark.parametrize(
    ("name", "trial"),
    [
        ("моя студия", 1),
        (REGISTERED, 1),
        (f"models:/{REGISTERED}@champion", 1),
        (f"models:/{REGISTERED}/1", 0),
        (f"models:/{REGISTERED}/2", 1),
    ],
)
def test_a_model_and_a_study_by_name(store: Store, name: str, trial: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    assert found(name)[1] == store.trials[trial]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "nosuch",
            "no adapter nosuch: the folder nosuch does not exist.*no registered model nosuch or lorahydra-nosuch",
        ),
        ("./nosuch", "nosuch is not an adapter: there is no such folder"),
        ("outputs/x", "outputs/x is not an adapter"),
        ("0" * 32, f"has no run {'0' * 32}.*--uri"),
        ("models:/nosuch@champion", "is not in the registry"),
        (f"models:/{REGISTERED}@best", "is not in the registry"),
        (f"models:/{REGISTERED}/9", "is not in the registry"),
        (f"models:/{REGISTERED}", "write models:/NAME@ALIAS or models:/NAME/VERSION"),
        ("models:/a/b/c", "write models:/NAME@ALIAS"),
        ("models:/../../x@y", "write models:/NAME@ALIAS"),
        ("'; DROP TABLE runs", "no adapter '; DROP TABLE runs"),
        ("x\0y", "no adapter"),
        ("~nobody-of-this-name", "is not an adapter"),
        ("n" * 5000, "no adapter"),
    ],
    ids=lambda text: str(text)[:30],
)
def test_what_is_not_there_is_one_line(
    store: Store, name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=message) as error, find_adapter(name, uri=store.uri):
        pytest.fail("it was found")
    assert "\n" not in str(error.value)


def test_a_run_without_an_adapter(store: Store) -> None:
    with (
        pytest.raises(ModelError, match=f"run {store.empty} .empty. has no adapter"),
        find_adapter(store.empty, uri=store.uri),
    ):
        pytest.fail("it was found")


def test_a_study_without_a_winner(store: Store, tmp_path: Path) -> None:
    with start_run(store.config, output_dir=tmp_path / "s", kind=Kind.STUDY, run_name="young") as study:
        pass
    with pytest.raises(ModelError, match="has no winner yet"), find_adapter(study.run_id, uri=store.uri):
        pytest.fail("it was found")


def test_a_name_of_two_models(store: Store) -> None:
    register_model(store.config, store.trials[0], "twice", tags={})
    assert found("twice", store)[1] == store.trials[0]
    register_model(store.config, store.trials[0], "lorahydra-twice", tags={})
    assert found("twice", store)[1] == store.trials[0], "both are the same adapter"
    register_model(store.config, store.trials[1], "lorahydra-twice", tags={})
    message = "both a registered model and a study.*models:/twice@champion or models:/lorahydra-twice@champion"
    with pytest.raises(ModelError, match=message), find_adapter("twice", uri=store.uri):
        pytest.fail("it was found")


def test_the_folder_of_a_trial_says_where_its_adapter_is(tiny_adapter: Path) -> None:
    with pytest.raises(ModelError, match=f"{tiny_adapter} is one"), find_adapter(str(tiny_adapter.parent)):
        pytest.fail("it was found")


def test_no_store_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in ("demo", "0" * 32, "models:/demo@champion"):
        with (
            pytest.raises(ModelError, match=rf"no MLflow store at sqlite:///{tmp_path}/mlflow\.db"),
            find_adapter(name),
        ):
            pytest.fail("it was found")
    assert not list(tmp_path.iterdir())


def test_a_store_that_is_away_is_a_service() -> None:
    with pytest.raises(TrackingError) as error, find_adapter("demo", uri="http://127.0.0.1:9"):
        pytest.fail("it was found")
    assert isinstance(error.value, LorahydraError)
    assert error.value.exit_code == 3


def test_the_store_is_the_given_one_then_the_variable_then_a_file_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert store_address() == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://one:5000/")
    assert store_address() == "http://one:5000"
    assert store_address("sqlite:///two.db") == f"sqlite:///{tmp_path}/two.db"
