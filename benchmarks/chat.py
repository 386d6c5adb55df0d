"""How soon does a fine-tuned model answer, and does chatting leak memory?

python benchmarks/chat.py --cold 5 --chats 20

Serves, fine-tunes the packaged 135M model for a step on a few rows, and asks it over the API. Prints the seconds from a
request to its first token, the smallest and the median: of a model that is not loaded (`cold`: the process starts and
imports first; `expected`: it has done that, as it has soon after the page was opened), and of one that is (`warm`).
Then the memory of server and model process after each chat of three turns with both models, where the last one must
have no more than 5 % over the fifth.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
from server import SECONDS, served, wait
from states import russian_rows

MODEL = "smollm2-135m-instruct"
PROGRAM = "lorahydra.inference.model_process"
TURNS = ("What is a LoRA adapter?", "And why is it small?", "Say it in one sentence.")
QUICK = ("evaluation=minilm", "evaluation.max_new_tokens=64", "training.max_steps=1", "tracking.system_metrics=false")
MIB = 1 << 20
READING = 10.0
"""Seconds between the opening of a page and the first question."""


def main() -> None:
    """Fine-tune, ask, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cold", type=int, default=5)
    parser.add_argument("--chats", type=int, default=20)
    options = parser.parse_args()
    words = [word for override in QUICK for word in ("--set", override)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (
            served(folder / "served", folder / "serve.txt", {"HF_HUB_OFFLINE": "1"}, words) as (port, pid),
            httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=SECONDS, trust_env=False) as api,
        ):
            path = f"/fine-tunes/{fine_tune(api)}"
            server = psutil.Process(pid)
            cold = [first_token(api, path, server) for _ in range(options.cold)]
            say("cold", [seconds for seconds, _ in cold])
            expected = [first_token(api, path, server, expect=True) for _ in range(options.cold)]
            say("expected", [seconds for seconds, _ in expected])
            warm = [ask(api, path, [{"role": "user", "content": TURNS[0]}])[0] for _ in range(options.chats)]
            say("warm", warm)
            sys.exit(not leaks_nothing(api, path, server, options.chats))


def fine_tune(api: httpx.Client) -> int:
    """A finished fine-tune of the packaged model."""
    project = api.post("/projects", json={"name": "Chat"}).json()["id"]
    api.post(f"/projects/{project}/datasets", files={"file": ("rows.jsonl", russian_rows(20))}).raise_for_status()
    params = {"use_llm_judge": False, "base_model_name": MODEL, "n_trials": 5}
    answer = api.post("/fine-tunes", json={"project_id": project, "fine_tuning_params": params})
    number = int(answer.raise_for_status().json()["id"])
    wait(lambda: api.get(f"/fine-tunes/{number}").json()["ended"] is not None)
    return number


def model_process(server: psutil.Process) -> psutil.Process | None:
    """The process that holds the model."""
    return next((child for child in server.children() if PROGRAM in " ".join(child.cmdline())), None)


def first_token(api: httpx.Client, path: str, server: psutil.Process, *, expect: bool = False) -> tuple[float, str]:
    """Seconds to the first token of a model that is not loaded, and the answer."""
    if (process := model_process(server)) is not None:
        process.kill()
        wait(lambda: not process.is_running())
    if expect:
        api.post(f"{path}/prepare", params={"load": False}).raise_for_status()
        time.sleep(READING)
    return ask(api, path, [{"role": "user", "content": TURNS[0]}])


def ask(api: httpx.Client, path: str, messages: list[dict[str, str]], **more: Any) -> tuple[float, str]:
    """Seconds to the first token of an answer, and the answer."""
    began, first, text = time.perf_counter(), 0.0, ""
    body = {"messages": messages, "stream": True, "max_new_tokens": 24, **more}
    with api.stream("POST", f"{path}/generate", json=body) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            first = first or time.perf_counter() - began
            text = line.partition("data: ")[2] or text
    return first, str(httpx.Response(200, text=text).json()["answer"])


def say(what: str, seconds: list[float]) -> None:
    """Print a row of measurements."""
    print(f"{what}: first token after {min(seconds):.2f} s (median {statistics.median(seconds):.2f} s)", flush=True)


def leaks_nothing(api: httpx.Client, path: str, server: psutil.Process, chats: int) -> bool:
    """Chat, and compare the memory after the last chat with that after the fifth."""
    sizes = []
    for number in range(chats):
        for tuned in (True, False):
            messages: list[dict[str, str]] = []
            for turn in TURNS:
                messages.append({"role": "user", "content": f"{turn} ({number})"})
                messages.append({"role": "assistant", "content": ask(api, path, messages, tuned=tuned)[1]})
        model = model_process(server)
        sizes.append([process.memory_info().rss / MIB for process in (server, model) if process is not None])
        print(f"chat {number + 1}: server {sizes[-1][0]:.1f} MiB, model {sizes[-1][-1]:.1f} MiB", flush=True)
    grown = [last / fifth - 1 for fifth, last in zip(sizes[min(4, chats - 1)], sizes[-1], strict=True)]
    print(f"growth since the fifth chat: server {grown[0]:+.1%}, model {grown[-1]:+.1%}")
    return max(grown) <= 0.05


if __name__ == "__main__":
    main()
