"""A form is written to disk while it arrives: under a name of the service's own, and no more of it than allowed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from tests.service.test_deletions import add_dataset
from tests.support.waiting import SECONDS, wait_for

from lorahydra.service.errors import ServiceRefusal
from lorahydra.service.service import Service
from lorahydra.service.uploads import Upload

FORM = "multipart/form-data; boundary=x"


def part(field: str, content: str, name: str | None = None) -> bytes:
    disposition = f'form-data; name="{field}"' + ("" if name is None else f'; filename="{name}"')
    return f"--x\r\nContent-Disposition: {disposition}\r\n\r\n{content}\r\n".encode()


@pytest.mark.parametrize(
    "name", ["rows.jsonl", "../rows.jsonl", "/tmp/../rows.jsonl", "C:\\\\data\\\\rows.jsonl", "..\\\\rows.jsonl"]
)
def test_the_users_name_is_in_no_path(tmp_path: Path, name: str) -> None:
    with Upload(tmp_path, FORM, 100) as upload:
        for byte in part("file", "{}", name) + b"--x--\r\n":
            upload.feed(bytes([byte]))
        assert upload.name == "rows.jsonl"
        assert upload.path.parent.parent == tmp_path
        assert "rows" not in upload.path.name
        upload.keep()
    [kept] = tmp_path.iterdir()
    assert kept.name == upload.path.name
    assert (kept.read_bytes(), kept.stat().st_mode & 0o777) == (b"{}", 0o600)


@pytest.mark.parametrize(
    ("form", "status", "code"),
    [
        (part("file", "x" * 101, "a.jsonl"), 413, "too_large"),
        (part("other", "x" * 70_000), 413, "too_large"),
        (part("file", "", "a.jsonl") * 2, 422, "several_files"),
        (part("other", "") * 11, 400, "bad_form"),
        (part("file", "", "a.exe"), 422, "bad_dataset"),
        (part("file", "", ".jsonl"), 422, "bad_dataset"),
        (part("file", "", "x" * 201 + ".jsonl"), 422, "invalid"),
        (part("file", "{}", "a.jsonl"), 400, "bad_form"),
        (part("file", "{}") + b"--x--\r\n", 422, "invalid"),
        (part("other", "", "a.jsonl") + b"--x--\r\n", 422, "no_file"),
        (b"--y", 400, "bad_form"),
    ],
)
def test_what_is_refused_leaves_nothing(tmp_path: Path, form: bytes, status: int, code: str) -> None:
    with Upload(tmp_path, FORM, 100) as upload, pytest.raises(ServiceRefusal) as refusal:
        upload.feed(form)
        upload.check([])
    assert (refusal.value.status_code, refusal.value.code) == (status, code)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_server_had_begun_is_finished(service: Service) -> None:
    project = service.projects.create("Support").id
    add_dataset(service, project)
    folder = service.config.folder / "datasets"
    [file] = folder.iterdir()
    (folder / "incoming-one").mkdir()
    file.rename(folder / "incoming-one" / file.name)  # it is in the database, and was about to be moved
    (folder / "incoming-two").mkdir()
    (folder / "incoming-two" / "dataset-2.jsonl").write_text("{}")
    service.datasets.tidy()
    assert list(folder.iterdir()) == [file]


HELPER = "from lorahydra.service.helpers import end_with_server as end; end(); import time; time.sleep(600)"
SERVER = (
    "import sys; from lorahydra.service.helpers import run_helper; run_helper([sys.executable, *sys.argv[1:]], 600)"
)


def test_a_check_ends_with_a_server_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", SERVER, "-c", HELPER]) as server:
        wait_for(lambda: bool(psutil.Process(server.pid).children()))
        [helper] = psutil.Process(server.pid).children()
        server.kill()
    helper.wait(SECONDS)
