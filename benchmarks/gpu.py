"""On one GPU: training steps, decoding, and a study in which a trial is too large.

    python benchmarks/gpu.py                      # all of them, about three minutes
    python benchmarks/gpu.py decode
    python benchmarks/gpu.py steps --quantization nf4

The model has the shape of Qwen3-0.6B and random weights, so nothing is downloaded.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import GenerationConfig

from lorahydra.config.schema import LoraConfig, ModelConfig, TrainingConfig
from lorahydra.modeling.base import BaseModel, load_base
from lorahydra.modeling.generation import generate
from lorahydra.training import TrainingJob, train
from lorahydra.utils.progress import Progress

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from benchmarks.packing import SHAPES, Rows  # noqa: E402
from benchmarks.studies import run_study, write_model  # noqa: E402

QUIET = Progress(live=False)
BYTES = 256
"""Tokens that rows are made of."""


def synchronized() -> float:
    """The time at which the device has finished all its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def steps(base: BaseModel, work: Path) -> None:
    """Time of an optimiser step, how much of it the GPU computes, and memory."""
    print("optimiser steps (r 16, all-linear, 100 of 200 tokens with loss)")
    for batch in (4, 16):
        rows = Rows(batch * 40, 200, BYTES)

        def fit(count: int, rows: Rows = rows, batch: int = batch) -> list[float]:
            times: list[float] = []
            training = TrainingConfig(max_steps=count, per_device_train_batch_size=batch, logging_steps=1)
            job = TrainingJob(
                LoraConfig(r=16, lora_alpha=32),
                training,
                0,
                work / "job",
                lambda values, _: times.append(synchronized()) if "train/loss" in values else None,
            )
            train(base, [job], rows, Rows(4, 200, BYTES), QUIET)
            return times

        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        times = fit(30)
        step = statistics.median(after - before for before, after in itertools.pairwise(times[5:]))
        print(f"  batch {batch:3} x 200: {step * 1e3:7.1f} ms a step, {batch * 200 / step:9.0f} tokens/s", end="")
        if not torch.cuda.is_available():
            print(flush=True)
            continue
        print(f", {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB at most", end="", flush=True)
        with torch.profiler.profile(activities=list(torch.profiler.supported_activities()), acc_events=True) as profile:
            fit(4)
        events = profile.key_averages()
        busy = sum(event.self_device_time_total for event in events) / 1e3
        launches = sum(event.count for event in events if "LaunchKernel" in event.key)
        # Validation and saving are in it as well, once.
        print(f"; in 4 steps, one validation and saving: {launches} launches, GPU busy for {busy:.0f} ms", flush=True)
        for event in sorted(events, key=lambda event: -event.self_device_time_total)[:8]:
            print(f"      {event.self_device_time_total / 1e3:6.1f} ms {event.count:6} x {event.key[:90]}", flush=True)


def decode(base: BaseModel) -> None:
    """Our decoding against `model.generate`, the same prompts and number of tokens."""
    print("decoding 64 tokens after prompts of 100 (greedy, no end)")
    new = 64
    for batch in (1, 8, 32, 128, 512):
        rows = Rows(batch, 100, BYTES)
        ids = torch.stack([rows[row]["input_ids"] for row in range(batch)]).to(base.device)
        prompts = ids.tolist()
        mask = torch.ones_like(ids)
        settings = GenerationConfig(max_new_tokens=new, do_sample=False, pad_token_id=0)

        def ours(prompts: list[list[int]] = prompts, batch: int = batch) -> list[list[int]]:
            limits = {"max_new_tokens": new, "batch_size": batch}
            [answers] = generate(base.model, prompts, stop=frozenset(), **limits, progress=QUIET)
            return answers

        def theirs(ids: torch.Tensor = ids, mask: torch.Tensor = mask, settings: object = settings) -> list[list[int]]:
            with torch.inference_mode():
                tokens = base.model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
            return tokens[:, 100:].tolist()

        times = {"lorahydra": [], "transformers": []}
        sides: dict[str, Callable[[], list[list[int]]]] = {"lorahydra": ours, "transformers": theirs}
        answers = {}
        for turn in range(3):
            for name, side in sides.items():
                started = synchronized()
                answers[name] = side()
                if turn:
                    times[name].append(synchronized() - started)
        same = sum(a == b for a, b in zip(*answers.values(), strict=True))
        speeds = {name: batch * new / statistics.mean(values) for name, values in times.items()}
        print(f"  batch {batch:3}: " + ", ".join(f"{k} {v:7.0f} tokens/s" for k, v in speeds.items()), end="")
        print(f"; {same} of {batch} answers the same", flush=True)


def study(work: Path) -> None:
    """A study of four trials, started by the command; one of its batch sizes does not fit."""
    searched = ("training.per_device_train_batch_size=choice(4, 512)", "lora.r=choice(8, 32)", "training.max_steps=8")
    about = "4 trials, two of them with a batch of 512 x 1750 tokens"
    run_study(work, "gpu", about, 45, *searched, "hydra.sweeper.n_trials=4")


def main() -> None:
    """Run the requested parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=["steps", "decode", "study"], help="steps, decode, study")
    parser.add_argument("--quantization", choices=["nf4", "int8"], help="of the base model, for steps and decode")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_model(work / "model", SHAPES["qwen3-0.6b"], torch.bfloat16, device)
        if {"steps", "decode"} & set(options.parts):
            base = load_base(ModelConfig(name_or_path=str(work / "model"), quantization=options.quantization))
            if "steps" in options.parts:
                steps(base, work)
            if "decode" in options.parts:
                decode(base)
            del base
        if "study" in options.parts:
            study(work)


if __name__ == "__main__":
    main()
