"""Does the service survive? kill -9 of the server in an upload, in a chat and in a deletion, then start it again.

python benchmarks/service_kills.py --rounds 10

Each round kills the server at a random moment of each of them, looks for processes that outlive it, starts it again in
the same folder, and checks: a dataset that is listed is complete, and nothing else is left of an upload; a fine-tune
answers, or is deleted; what was deleted is nowhere, neither in the API nor, as a planted phrase, in any file.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
from server import wait
from states import UNJUDGED, States, serving

PHRASE = "Ms Ada Planted, 4711 Zanzibar Road"
ROWS = 20_000
"""Rows of an upload, so that its check takes a while."""
SECONDS_TO_END = 30
"""How long the processes of a killed server may need to notice."""


def main() -> None:
    """Run the rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    drawn, faults = random.Random(options.seed), 0
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        first = finished(root)
        for number in range(options.rounds):
            for act in (upload, chat, delete):
                shutil.rmtree(root / "served", ignore_errors=True)
                shutil.copytree(first, root / "served", symlinks=True)
                moment = drawn.uniform(0, 3.0 if act is chat else 1.5)
                found = killed(root, act, moment)
                faults += len(found)
                print(f"{number} {act.__name__} after {moment:.2f} s: {'; '.join(found) or 'ok'}", flush=True)
    print(f"{faults} faults")
    sys.exit(bool(faults))


def finished(root: Path) -> Path:
    """The folder of a server with a fine-tune on a dataset that has the phrase."""
    with serving(root) as states:
        states.project = states.api.post("/projects", json={"name": PHRASE}).json()["id"]
        rows = "\n".join(json.dumps({"question": f"Who is {n}? {PHRASE}", "answer": f"Ada {n}."}) for n in range(40))
        sent = states.api.post(f"/projects/{states.project}/datasets", files={"file": ("rows.jsonl", rows.encode())})
        states.dataset = sent.raise_for_status().json()["id"]
        states.wait_for(states.start(UNJUDGED, PHRASE), "complete")
    return (root / "served").rename(root / "finished")


def upload(api: httpx.Client) -> None:
    """Send a file."""
    rows = "\n".join(json.dumps({"question": f"What is {n}?", "answer": f"{n}"}) for n in range(ROWS))
    api.post("/projects/1/datasets", files={"file": ("large.jsonl", rows.encode())})


def chat(api: httpx.Client) -> None:
    """Ask for a long answer."""
    messages = [{"role": "user", "content": "What is one and one?"}]
    api.post("/fine-tunes/1/generate", json={"messages": messages, "max_new_tokens": 100_000, "stream": True})


def delete(api: httpx.Client) -> None:
    """Delete the project with all that is in it."""
    api.delete("/projects/1")


def killed(root: Path, act: Callable[[httpx.Client], None], moment: float) -> list[str]:
    """Kill the server at a moment of an act and start it again; the faults that are found."""
    with serving(root) as states:
        asking = threading.Thread(target=quietly, args=(act, states.api))
        asking.start()
        time.sleep(moment)
        server = psutil.Process(states.pid)
        helpers = server.children(recursive=True)
        server.kill()
        asking.join()
    _, alive = psutil.wait_procs(helpers, SECONDS_TO_END)
    faults = [f"{' '.join(one.cmdline()[:4])} outlives the server" for one in alive]
    with serving(root) as states:
        return [*faults, *check(states, act is delete)]


def quietly(act: Callable[[httpx.Client], None], api: httpx.Client) -> None:
    """Do something whose connection may break."""
    with suppress(httpx.TransportError):
        act(api)


def check(states: States, may_be_deleted: bool) -> Iterator[str]:
    """The faults of a server that was killed and started again."""
    gone = states.api.get("/projects/1").status_code == 404
    if gone and not may_be_deleted:
        yield "the project is gone"
    if gone:
        wait(lambda: states.api.get("/deletions/1").json()["ended"] is not None)
        places = [file for file in states.folder.rglob("*") if file.is_file() and PHRASE.encode() in file.read_bytes()]
        if places:
            yield f"the phrase is in {places}"
    listed = [] if gone else states.api.get("/projects/1/datasets").json()["items"]
    left = sorted((states.folder / "datasets").iterdir())
    if sorted(file.stat().st_size for file in left) != sorted(one["size"] for one in listed):
        yield f"{len(listed)} datasets are listed, and there is {[file.name for file in left]}"
    if not gone:
        messages = [{"role": "user", "content": "What is one and one?"}]
        answer = states.api.post("/fine-tunes/1/generate", json={"messages": messages, "max_new_tokens": 2})
        if answer.status_code != 200:
            yield f"the fine-tune does not answer: {answer.text}"


if __name__ == "__main__":
    main()
