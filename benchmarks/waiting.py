"""How the speed of one process, and of two at once, depends on how long torch's threads spin while they wait.

python benchmarks/waiting.py --seconds 60
sudo python benchmarks/waiting.py --seconds 30 --exclusive

Two processes of each setting are started once, and then measure in turn, alone and both at the same time: four training
steps and 60 steps of generation of six transformer layers as wide as those of SmolLM2-135M. Prints medians in seconds,
and the ratio to torch's default setting, round by round. On a machine that does other work, `--exclusive` measures
alone and at real-time priority, in bursts with pauses between them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

SETTINGS = {"torch by itself": {}, "briefly": {"GOMP_SPINCOUNT": "5000"}, "never": {"OMP_WAIT_POLICY": "PASSIVE"}}
WIDTH, INNER, LAYERS, HEADS = 576, 1536, 6, 9
REST = 1.5


def serve(exclusive: bool) -> None:
    """Measure once for each line of input."""
    import torch
    from torch import nn
    from torch.nn import functional

    if exclusive:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    shapes = ((WIDTH, WIDTH), (WIDTH, INNER), (INNER, WIDTH))
    layers = [(nn.LayerNorm(WIDTH), *(nn.Linear(*shape) for shape in shapes)) for _ in range(LAYERS)]

    def forward(states: Any) -> Any:
        for norm, attention, up, down in layers:
            heads = attention(norm(states)).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            mixed = functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
            states = states + mixed.transpose(1, 2).flatten(2)
            states = states + down(functional.silu(up(norm(states))))
        return states

    prompts, token = torch.randn(4, 160, WIDTH), torch.randn(8, 1, WIDTH)
    forward(prompts).sum().backward()
    print("ready", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        for _ in range(4):
            forward(prompts).sum().backward()
        trained = time.perf_counter()
        with torch.no_grad():
            for _ in range(60):
                forward(token)
        print(json.dumps([trained - started, time.perf_counter() - trained]), flush=True)


def start(setting: dict[str, str], exclusive: bool) -> Any:
    """A process whose threads wait in the given way."""
    clean = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    command = [sys.executable, __file__, "--serve", *(["--exclusive"] if exclusive else [])]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=clean | setting, **pipes)  # type: ignore[call-overload]
    process.stdout.readline()
    return process


def together(processes: list[Any]) -> list[float]:
    """The mean of the measurements of processes that begin at the same time."""
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    replies = [json.loads(process.stdout.readline()) for process in processes]
    return [statistics.mean(values) for values in zip(*replies, strict=True)]


def main() -> None:
    """Run the rounds and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--exclusive", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.exclusive)
        return
    counts = (1,) if options.exclusive else (1, 2)
    running = {name: [start(setting, options.exclusive) for _ in counts] for name, setting in SETTINGS.items()}
    times: dict[tuple[int, str], list[list[float]]] = {(count, name): [] for count in counts for name in SETTINGS}
    begun = time.monotonic()
    while time.monotonic() - begun < options.seconds:
        for count, name in times:
            times[count, name].append(together(running[name][:count]))
            if options.exclusive:
                time.sleep(REST)
    print(f"{'':16}{'processes':>10}{'rounds':>8}{'training':>20}{'generation':>20}")
    for (count, name), rounds in times.items():
        paired = list(zip(rounds, times[count, "torch by itself"], strict=True))
        cells = [
            f"{statistics.median(one[at] for one in rounds):.3f} s, "
            f"{statistics.median(one[at] / base[at] for one, base in paired):.2f} x"
            for at in range(2)
        ]
        print(f"{name:16}{count:>10}{len(rounds):>8}{cells[0]:>20}{cells[1]:>20}")
    for process in (process for pair in running.values() for process in pair):
        process.stdin.close()


if __name__ == "__main__":
    main()
