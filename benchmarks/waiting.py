"""What one process and two at once gain or lose when torch's threads sleep while they wait, instead of spinning.

python benchmarks/waiting.py --runs 3

Each process trains SmolLM2-135M for some steps and generates some answers; rounds of all settings are interleaved, and
two processes begin together. Printed are medians over rounds: seconds for a training step and for the answers.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

SETTINGS = {
    "spinning": {"OMP_WAIT_POLICY": ""},
    "spinning briefly": {"OMP_WAIT_POLICY": "", "GOMP_SPINCOUNT": "3000"},
    "sleeping": {"OMP_WAIT_POLICY": "PASSIVE"},
}
STEPS = 3


def measure() -> tuple[float, float]:
    """Median seconds of a training step of four examples of 160 tokens, and seconds of eight answers."""
    import torch

    from lorahydra.config.schema import LoraConfig, ModelConfig
    from lorahydra.modeling.adapters import adapter
    from lorahydra.modeling.base import load_base
    from lorahydra.modeling.generation import generate
    from lorahydra.training.loss import CompletionLoss

    base = load_base(ModelConfig(name_or_path="smollm2-135m-instruct", device="cpu"))
    ids = torch.randint(100, 40_000, (4, 160))
    with adapter(base, LoraConfig(), seed=0) as model:
        loss = CompletionLoss(model)
        loss(model, ids, ids).backward()
        print("ready", flush=True)
        sys.stdin.readline()
        times = []
        for _ in range(STEPS):
            started = time.perf_counter()
            loss(model, ids, ids).backward()
            times.append(time.perf_counter() - started)
    started = time.perf_counter()
    generate(base.model, ids[:, :40].repeat(2, 1).tolist(), stop=(), max_new_tokens=24, batch_size=8)
    return statistics.median(times), time.perf_counter() - started


def together(count: int, setting: dict[str, str]) -> list[tuple[float, float]]:
    """What each of `count` processes measures that begin at the same time."""
    environment = {**os.environ, **setting}
    environment = {name: value for name, value in environment.items() if value}
    command = [sys.executable, __file__, "--measure"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    processes = [subprocess.Popen(command, **pipes) for _ in range(count)]  # type: ignore[call-overload]
    for process in processes:
        process.stdout.readline()
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    return [tuple(json.loads(process.communicate()[0].splitlines()[-1])) for process in processes]


def main() -> None:
    """Run the rounds and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure()))
        return
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for _ in range(options.runs):
        for count in (1, 2):
            for name, setting in SETTINGS.items():
                found.setdefault((name, count), []).extend(together(count, setting))
    print(f"{'':18}{'processes':>10}{'a step':>10}{'answers':>10}")
    for (name, count), seconds in sorted(found.items(), key=lambda item: item[0][1]):
        step, answers = (statistics.median(column) for column in zip(*seconds, strict=True))
        print(f"{name:18}{count:>10}{step:>8.2f} s{answers:>8.2f} s")


if __name__ == "__main__":
    main()
