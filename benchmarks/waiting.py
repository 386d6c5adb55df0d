"""What one process and two at once gain or lose when torch's threads sleep while they wait, instead of spinning.

python benchmarks/waiting.py --runs 5

Two processes of each setting are started once, and then measure in turn, alone and both at the same time: a training
step of SmolLM2-135M (four examples of 160 tokens) and 16 tokens of eight answers. Printed are medians over the runs,
and the ratio to spinning, pair by pair.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

SETTINGS = {"spinning": None, "sleeping": "PASSIVE"}
"""`OMP_WAIT_POLICY`; unset is what torch's OpenMP does by itself."""


def serve() -> None:
    """Measure each time a line comes in."""
    # Before lorahydra, which sets the variable where it is not set.
    import torch

    from lorahydra.config.schema import LoraConfig, ModelConfig
    from lorahydra.modeling.adapters import adapter
    from lorahydra.modeling.base import load_base
    from lorahydra.modeling.generation import generate
    from lorahydra.training.loss import CompletionLoss

    base = load_base(ModelConfig(name_or_path="smollm2-135m-instruct", device="cpu"))
    ids = torch.randint(100, 40_000, (4, 160), generator=torch.Generator().manual_seed(0))
    prompts = ids[:, :40].repeat(2, 1).tolist()
    with adapter(base, LoraConfig(), seed=0) as model:
        loss = CompletionLoss(model)
        loss(model, ids, ids).backward()
        print("ready", flush=True)
        for _ in sys.stdin:
            started = time.perf_counter()
            loss(model, ids, ids).backward()
            trained = time.perf_counter()
            generate(base.model, prompts, stop=frozenset(), max_new_tokens=16, batch_size=8)
            print(json.dumps([trained - started, time.perf_counter() - trained]), flush=True)


def start(policy: str | None) -> Any:
    """A process whose threads wait in the given way."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": policy} if policy else {}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, __file__, "--serve"], env=environment, **pipes)  # type: ignore[call-overload]


def together(processes: list[Any]) -> list[float]:
    """The mean of what processes measure that begin at the same time."""
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    found = [json.loads(process.stdout.readline()) for process in processes]
    return [statistics.mean(values) for values in zip(*found, strict=True)]


def main() -> None:
    """Run the rounds and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    pairs = {name: [start(policy) for _ in range(2)] for name, policy in SETTINGS.items()}
    for process in (process for pair in pairs.values() for process in pair):
        process.stdout.readline()
    found: dict[tuple[str, int], list[list[float]]] = {(name, count): [] for count in (1, 2) for name in pairs}
    for _ in range(options.runs):
        for name, count in found:
            found[name, count].append(together(pairs[name][:count]))
    for process in (process for pair in pairs.values() for process in pair):
        process.stdin.close()
    print(f"{'':10}{'processes':>10}{'a step':>18}{'answers':>18}")
    for (name, count), runs in found.items():
        cells = ""
        for what in range(2):
            seconds = [run[what] for run in runs]
            ratio = statistics.median(
                run[what] / base[what] for run, base in zip(runs, found["spinning", count], strict=True)
            )
            cells += f"{statistics.median(seconds):>8.2f} s, {ratio:4.2f} x"
        print(f"{name:10}{count:>10}{cells}")


if __name__ == "__main__":
    main()
