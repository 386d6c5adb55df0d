from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from lorahydra.errors import OutputError
from lorahydra.tracking.spool import Header, Spool, SpoolBusyError, read_header


def operation(number: int) -> dict[str, Any]:
    return {"op": "tags", "values": {"n": str(number)}, "time": number}


def numbers(spool: Spool) -> list[int]:
    return [entry.operation["time"] for entry in spool.entries()]


def test_operations_come_back_in_order_after_reopening(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path)
    header = Header("sqlite:///x", "id", "name", 1)
    spool.write_header(header)
    for number in range(3):
        spool.append(operation(number))
    spool.advance(spool.entries()[0].end)
    spool.close()

    again = Spool.open(spool.folder)
    assert read_header(again.folder) == header
    assert numbers(again) == [1, 2]
    assert again.unsent() == 2
    assert again.last() == operation(2)
    again.remove()
    assert list(tmp_path.iterdir()) == []


def test_only_the_owner_reads_it(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path)
    assert spool.folder.stat().st_mode & 0o077 == 0
    spool.remove()


def test_it_belongs_to_one_at_a_time(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path)
    with pytest.raises(SpoolBusyError):
        Spool.open(spool.folder)
    spool.close()
    Spool.open(spool.folder).close()


def test_torn_last_line_is_no_operation(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path)
    spool.append(operation(0))
    spool.close()
    with (spool.folder / "queue.jsonl").open("a") as queue:
        queue.write('{"op":"tags","val')
    again = Spool.open(spool.folder)
    assert numbers(again) == [0]
    assert again.last() == operation(0)
    again.advance(again.entries()[-1].end)
    assert again.entries() == []
    again.close()


def test_damaged_line_does_not_stop_the_rest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = Spool.create(tmp_path)
    spool.append(operation(0))
    spool.close()
    with (spool.folder / "queue.jsonl").open("ab") as queue:
        queue.write(b"\0\0\r\0\n")
    again = Spool.open(spool.folder)
    again.append(operation(2))
    assert [entry.operation["op"] for entry in again.entries()] == ["tags", "damaged", "tags"]
    assert "damaged" in caplog.text
    again.close()


def test_full_disk_leaves_the_queue_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool.create(tmp_path)
    spool.append(operation(0))
    write = os.write

    def full(handle: int, data: Any) -> int:
        if len(data) < 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, bytes(data)[:-5])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OutputError, match="the disk is full"):
            spool.append(operation(1))
    spool.append(operation(2))
    assert numbers(spool) == [0, 2]
    spool.close()


def test_operation_longer_than_one_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorahydra.tracking.spool.READ_BYTES", 10)
    spool = Spool.create(tmp_path)
    for number in range(3):
        spool.append(operation(number))
    seen = []
    while entries := spool.entries():
        seen += [entry.operation["time"] for entry in entries]
        spool.advance(entries[-1].end)
    assert seen == [0, 1, 2]
    assert spool.last() == operation(2)
    spool.close()


def test_given_up_spool_is_not_brought_back(tmp_path: Path) -> None:
    """A call that hung may return after `sync` has sent and deleted everything."""
    spool = Spool.create(tmp_path)
    spool.append(operation(0))
    end = spool.entries()[-1].end
    spool.close()
    Spool.open(spool.folder).remove()
    spool.advance(end)
    assert not spool.folder.exists()
