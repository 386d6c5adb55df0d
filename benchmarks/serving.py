"""How fast the list of fine-tunes is answered while a study runs on the same cores.

python benchmarks/serving.py --seconds 30 --rate 200

Starts `lorahydra serve` in an empty folder, fills a page of the list, starts a study of the packaged 135M model on the
demo dataset, and asks for the list at a fixed rate over kept connections. A request's time counts from the moment at
which it was due, so that a server that falls behind shows it.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

from server import call, served, wait

CONNECTIONS = 32
QUEUED = 49
"""Fine-tunes that wait, in addition to the one that runs: a full page."""
START = {"use_llm_judge": False, "base_model_name": "smollm2-135m-instruct", "n_trials": 5}


def main() -> None:
    """Serve, ask, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--rate", type=float, default=200, help="requests a second")
    parser.add_argument("--path", default="/api/v1/fine-tunes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with served(folder / "served", folder / "serve.txt") as (port, _):
            try:
                fill(port)
                replies = asyncio.run(load(port, options.path, options.rate, options.seconds))
                print(summary(replies, options.rate), flush=True)
                job = call(port, "/api/v1/fine-tunes/1")
                print(f"the study is {job['state']}, {job['trials_finished']} of {job['trials_wanted']} trials")
            finally:
                for number in range(1, call(port, "/api/v1/fine-tunes")["total"] + 1):
                    call(port, f"/api/v1/fine-tunes/{number}/cancel", {})
                wait(lambda: call(port, "/api/v1/fine-tunes/1")["state"] == "cancelled")


def fill(port: int) -> None:
    """Start the fine-tunes, and wait until the first one trains."""
    body = {"project_id": 123, "fine_tuning_params": START}
    for _ in range(QUEUED + 1):
        wait(lambda: bool(call(port, "/api/v1/fine-tunes", body)["id"]))  # over the limit of starts: again
    wait(lambda: call(port, "/api/v1/fine-tunes/1")["trial_current"] is not None)


async def load(port: int, path: str, rate: float, seconds: float) -> list[tuple[float, int]]:
    """Ask at a fixed rate; the seconds from when each request was due, and its status (0 is a broken connection)."""
    began = time.monotonic() + 0.5
    numbers = iter(range(int(rate * seconds)))
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: application/json\r\n\r\n".encode()
    replies: list[tuple[float, int]] = []

    async def connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in numbers:
            due = began + number / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            try:
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                await reader.readexactly(int(length.partition(b":")[2]))
                replies.append((time.monotonic() - due, int(head.split()[1])))
            except (OSError, asyncio.IncompleteReadError):
                replies.append((time.monotonic() - due, 0))
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()

    await asyncio.gather(*(connection() for _ in range(CONNECTIONS)))
    return replies


def summary(replies: list[tuple[float, int]], rate: float) -> str:
    """One line."""
    times = sorted(seconds * 1000 for seconds, _ in replies)
    errors = sum(status != 200 for _, status in replies)
    p50, p99, worst = times[len(times) // 2], times[int(len(times) * 0.99)], times[-1]
    return (
        f"{len(replies)} requests at {rate:.0f} a second: {errors} errors, median {p50:.1f} ms, p99 {p99:.1f} ms, "
        f"longest {worst:.1f} ms"
    )


if __name__ == "__main__":
    main()
