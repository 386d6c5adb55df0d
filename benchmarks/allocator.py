"""A training step of SmolLM2-135M with and without `keep_freed_memory`, each in separate processes, interleaved.

python benchmarks/allocator.py --runs 3
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

STEPS = 4


def step_seconds(keep: bool) -> float:
    """Median time of a step of four examples of 224 tokens."""
    import torch

    from lorahydra.config.schema import LoraConfig, ModelConfig
    from lorahydra.modeling.base import load_base
    from lorahydra.modeling.lora import adapter
    from lorahydra.modeling.memory import keep_freed_memory
    from lorahydra.training.loss import CompletionLoss

    if keep:
        keep_freed_memory()
    base = load_base(ModelConfig(name_or_path="smollm2-135m-instruct", device="cpu"))
    ids = torch.randint(100, 40_000, (4, 224))
    labels = ids.clone()
    labels[:, :100] = -100
    with adapter(base, LoraConfig(), seed=0) as model:
        loss = CompletionLoss(model)
        times = []
        for _ in range(STEPS + 1):
            started = time.perf_counter()
            loss(model, ids, labels).backward()
            times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def main() -> None:
    """Run both sides in turn and print medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--side", choices=["default", "keep"])
    options = parser.parse_args()
    if options.side:
        print(json.dumps(step_seconds(options.side == "keep")))
        return
    times: dict[str, list[float]] = {"default": [], "keep": []}
    for _ in range(options.runs):
        for side, values in times.items():
            done = subprocess.run(
                [sys.executable, __file__, "--side", side], stdout=subprocess.PIPE, text=True, check=True
            )
            values.append(json.loads(done.stdout.splitlines()[-1]))
    for side, values in times.items():
        print(f"{side:8} {statistics.median(values):.2f} s a step ({', '.join(f'{value:.2f}' for value in values)})")


if __name__ == "__main__":
    main()
