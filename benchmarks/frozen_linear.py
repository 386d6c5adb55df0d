"""float32 products of a frozen layer, torch's default against `lorahydra.modeling.cpu_linear`, in GFLOP/s.

`medium` is what `training.matmul_precision=medium` computes: factors rounded to bfloat16, sums in float32.

python benchmarks/frozen_linear.py
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from lorahydra.modeling.cpu_linear import frozen_linear, is_supported, multiplies_bfloat16

# Tokens of a decoding step and of a training step; layers and output head of SmolLM2-135M.
SIZES = [(tokens, *layer) for tokens in (24, 896) for layer in ((576, 576), (576, 1536), (1536, 576), (576, 49152))]
RUNS = 7


def seconds(work: Callable[[], object]) -> float:
    """Time of one run."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def with_gradient(layer: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, weight: Tensor) -> Callable[[], object]:
    """Forward and backward of one layer."""
    return lambda: layer(inputs, weight).sum().backward()


def main() -> None:
    """Print medians of interleaved runs."""
    print(
        f"oneDNN path in use: {is_supported()}; multiplies in bfloat16: {multiplies_bfloat16()}; "
        f"{torch.get_num_threads()} threads"
    )
    for tokens, wide, high in SIZES:
        inputs, weight = torch.randn(tokens, wide, requires_grad=True), torch.randn(high, wide)
        sides = {
            name: with_gradient(layer, inputs, used)
            for name, layer, used in (
                ("torch", functional.linear, weight),
                ("highest", frozen_linear, weight),
                ("medium", frozen_linear, weight.bfloat16()),
            )
        }
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(RUNS + 1):
            for name, work in sides.items():
                times[name].append(seconds(work))
        rates = {name: 4e-9 * tokens * wide * high / statistics.median(values[1:]) for name, values in times.items()}
        print(f"{tokens:4} x {wide:4} -> {high:5}: " + ", ".join(f"{name} {rate:4.0f}" for name, rate in rates.items()))


if __name__ == "__main__":
    main()
