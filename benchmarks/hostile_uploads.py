"""Uploads that are made to do harm, at full size: does the server stay up, and the disk clean?

python benchmarks/hostile_uploads.py

Starts `lorahydra serve` in an empty folder with an empty cache and sends it, one after the other, files that swell,
never end, nest, have a million columns, or claim to be something else. For each it prints the answer, its time, the
largest memory of the server and of its checks during that time, and the files that are left in the folder.
"""

from __future__ import annotations

import gzip
import http.client
import io
import json
import os
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import psutil
from server import call, served, wait

MIB = 1 << 20
BOUNDARY = "hostile"


def main() -> None:
    """Send them all."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        caches = {"LORAHYDRA_CACHE": str(root / "cache"), "HF_HOME": str(root / "huggingface")}
        folder = root / "served"
        with served(folder, root / "serve.txt", caches) as (port, pid):
            call(port, "/api/v1/projects", {"name": "One"})
            wait(lambda: (folder / "mlflow.db").exists() and (folder / ".mlflow.db.lock").exists())
            (folder / "datasets" / "link.jsonl").symlink_to(root / "outside.jsonl")
            before = files(root)
            for file_name, content in cases(root):
                attack(port, pid, file_name, content)
                left = files(root) - before
                print(f"{'':14}left: {sorted(left) or 'nothing'}", flush=True)
                assert call(port, "/api/v1/health")["status"] == "ok"
            print("log of the server:", (root / "serve.txt").read_text()[-2000:])


def cases(root: Path) -> Iterator[tuple[str, Iterable[bytes]]]:
    """Names and contents, the contents in pieces."""
    row = b'{"question": "Why?", "answer": "Because."}\n'
    yield "zip bomb.jsonl", [zip_bomb()]
    yield "gzip bomb.json", [gzip_bomb()]
    yield "parquet bomb.parquet", [parquet_bomb(root)]
    yield "2 GB stream.jsonl", (row * 25_000 for _ in range(2000))
    yield "one line of 900 MB.jsonl", [b'{"question": "', *[b"x" * MIB] * 900, b'", "answer": "b"}']
    yield "nested.json", [b"[" * MIB] * 200
    yield "nested.jsonl", [b'{"a":' * 200_000] * 100
    yield "a million columns.csv", [b"question,answer," + b",".join(b"c%d" % n for n in range(1_000_000)) + b"\na,b\n"]
    yield "a million columns in row 2.csv", [b"question,answer\na,b\n" + b"," * 1_000_000 + b"\n"]
    yield "a million columns.parquet", [wide_parquet(root)]
    yield "a quote that never ends.csv", [b'question,answer\n"', *[b"a\n" * (MIB // 2)] * 500]
    yield "a million keys.jsonl", [b"{" + b",".join(b'"k%d":1' % n for n in range(1_000_000)) + b"}\n"]
    yield "binary.csv", [os.urandom(100 * MIB)]
    yield "binary.jsonl", [os.urandom(100 * MIB)]
    yield "binary.parquet", [b"PAR1" + os.urandom(100 * MIB) + b"PAR1"]
    yield "/etc/../etc/passwd", [row]
    yield "..\\..\\up.jsonl\\", [row]
    yield "link.jsonl", [b"not json"]
    assert not (root / "outside.jsonl").exists()


def attack(port: int, pid: int, name: str, content: Iterable[bytes]) -> None:
    """Send one and print the result."""
    peak, ended = [0, 0], threading.Event()
    watcher = threading.Thread(target=watch, args=(pid, peak, ended))
    watcher.start()
    began = time.monotonic()
    try:
        status, answer = send(port, name, content)
        said = json.loads(answer).get("detail", answer[:100])
    except (OSError, http.client.HTTPException) as error:
        status, said = 0, repr(error)
    ended.set()
    watcher.join()
    print(f"{name[:40]:40} {status} in {time.monotonic() - began:.1f} s, server {peak[0] // MIB} MiB, "
          f"check {peak[1] // MIB} MiB: {said[:160]}", flush=True)  # fmt: skip


def send(port: int, name: str, content: Iterable[bytes]) -> tuple[int, bytes]:
    """Upload in an unknown number of pieces; an answer that comes before the end is accepted."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=900)
    connection.putrequest("POST", "/api/v1/projects/1/datasets")
    connection.putheader("Content-Type", f"multipart/form-data; boundary={BOUNDARY}")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    quoted = name.replace("\\", "\\\\")
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{quoted}"\r\n\r\n'
    try:
        for part in chain([head.encode()], content, [f"\r\n--{BOUNDARY}--\r\n".encode()]):
            connection.send(b"%x\r\n" % len(part) + part + b"\r\n")
        connection.send(b"0\r\n\r\n")
    except (BrokenPipeError, ConnectionResetError):
        pass  # refused before its end: the answer may still be read
    answer = connection.getresponse()
    return answer.status, answer.read()


def watch(pid: int, peak: list[int], ended: threading.Event) -> None:
    """Note the largest resident memory of the server and of its children."""
    server = psutil.Process(pid)
    while not ended.wait(0.05):
        peak[0] = max(peak[0], server.memory_info().rss)
        for child in server.children(recursive=True):
            try:
                peak[1] = max(peak[1], child.memory_info().rss)
            except psutil.NoSuchProcess:
                continue


def zip_bomb() -> bytes:
    """A few MB that become 2 GB."""
    content = io.BytesIO()
    with (
        zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("rows.jsonl", "w", force_zip64=True) as entry,
    ):
        for _ in range(2048):
            entry.write(b"\0" * MIB)
    return content.getvalue()


def gzip_bomb() -> bytes:
    """A few MB that become 2 GB."""
    content = io.BytesIO()
    with gzip.GzipFile(fileobj=content, mode="wb") as stream:
        for _ in range(2048):
            stream.write(b"\0" * MIB)
    return content.getvalue()


def parquet_bomb(root: Path) -> bytes:
    """Some KB that become 200 million rows of a kilobyte each."""
    import pyarrow
    from pyarrow import parquet

    words = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 2_000_000, pyarrow.int32()), ["x" * 1000])
    table = pyarrow.table({"question": words, "answer": words})
    file = root / "bomb.parquet"
    with parquet.ParquetWriter(file, table.schema, compression="zstd") as writer:
        for _ in range(100):
            writer.write_table(table)
    content = file.read_bytes()
    file.unlink()
    return content


def wide_parquet(root: Path) -> bytes:
    """A table of 200 thousand columns (a million take minutes to write) and one row."""
    import pyarrow
    from pyarrow import parquet

    file = root / "wide.parquet"
    parquet.write_table(pyarrow.table({f"c{number}": ["x"] for number in range(200_000)}), file)
    content = file.read_bytes()
    file.unlink()
    return content


def files(root: Path) -> set[str]:
    """All files below a folder, apart from databases' journals."""
    files = (path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir())
    return {name for name in files if not name.endswith(("-journal", "-wal", "-shm"))}


if __name__ == "__main__":
    main()
