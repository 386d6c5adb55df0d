"""On one GPU: training steps, decoding, a study in which a trial is too large, and studies with and without packs.

    python benchmarks/gpu.py                      # all of them, about five minutes
    python benchmarks/gpu.py decode packs

The model has the shape of Qwen3-0.6B and random weights, so nothing is downloaded.
"""

import argparse
import copy
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import torch
from transformers import GenerationConfig, Qwen3ForCausalLM

from lorahydra.config.schema import LoraConfig, ModelConfig, TrainingConfig
from lorahydra.modeling.base import BaseModel, load_base
from lorahydra.modeling.generation import generate
from lorahydra.training import TrainingJob, train
from lorahydra.utils.progress import Progress

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from benchmarks.packing import SHAPES, Rows  # noqa: E402
from tests.support.models import make_tiny_encoder, write_byte_tokenizer  # noqa: E402

QUIET = Progress(live=False)
BYTES = 256
"""Tokens that rows are made of."""


def write_model(folder: Path, device: str) -> None:
    """Qwen3-0.6B's shape with random weights in bfloat16, and a tokenizer of bytes."""
    vocabulary = write_byte_tokenizer(folder)
    config = copy.deepcopy(SHAPES["qwen3-0.6b"])
    config.eos_token_id, config.pad_token_id = vocabulary["<|im_end|>"], vocabulary["<|endoftext|>"]
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)


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
            return generate(base.model, prompts, stop=frozenset(), max_new_tokens=new, batch_size=batch, progress=QUIET)

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


def packs(work: Path) -> None:
    """Studies with trials of 100 steps: side by side, one by one, and one by one without recordings (CUDA graphs)."""
    for size, trials, recorded in ((8, 16, "1"), (1, 4, "1"), (1, 4, "0")):
        rates = ", ".join(f"{n}e-5" for n in range(1, trials + 1))
        settings = (f"training.learning_rate=choice({rates})", "training.max_steps=100", f"training.pack={size}")
        about = f"{trials} trials in packs of {size}{'' if recorded == '1' else ', without recordings'}"
        name = f"pack{size}-{recorded}"
        run_study(work, name, about, 3, *settings, f"hydra.sweeper.n_trials={trials}", LORAHYDRA_CUDA_GRAPHS=recorded)


def run_study(work: Path, name: str, about: str, length: int, *settings: str, **variables: str) -> None:
    """Run a study by the command, and print how it went and how long it took, in all and for a trial."""
    # The scores mean nothing, and the time is that of a real small encoder.
    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    make_tiny_encoder(work / "encoder", **sizes)
    text = "This sentence makes the request long. " * length
    rows = [{"question": f"{text} What is {n}+{n}?", "answer": f"{n}+{n} is {2 * n}, of course."} for n in range(700)]
    (work / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    command = [
        *(sys.executable, str(REPOSITORY / "train.py"), "-m", f"study={name}"),
        *("model=local", f"model.name_or_path={work / 'model'}"),
        *("data=local", "data.train_file=rows.jsonl", "data.max_length=2048"),
        *("data.validation_fraction=0.03", "data.test_fraction=0.03"),
        *(f"evaluation.bertscore_model={work / 'encoder'}", "evaluation.bertscore_num_layers=6"),
        "evaluation.max_new_tokens=32",
        *("hydra/sweeper/sampler=grid", "hydra/sweeper/pruner=none", *settings),
    ]
    environment = (
        os.environ
        | variables
        | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY / "src"), os.environ.get("PYTHONPATH", "")])}
    )
    started = time.perf_counter()
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
    print(f"study of {about}: exit code {done.returncode}", end="")
    print(f" after {time.perf_counter() - started:.0f} s", end="")
    lines = (done.stdout + done.stderr).splitlines()
    begun = [stamp(line) for line in lines if re.search(r"Trial \d+ begins", line)]
    ended = [stamp(line) for line in lines if re.search(r"Study .*\d of \d+ trials", line)]
    if begun and ended:
        seconds = (ended[-1] - begun[0]).total_seconds()
        print(f"; {seconds:.1f} s from the first trial to the last, {seconds / len(ended):.2f} s a trial", end="")
    print(flush=True)
    told = re.compile(r"[Oo]ut of memory|helped|Test|Error|winner|Winner|best")
    print("\n".join(f"  {line[:200]}" for line in lines if told.search(line)))
    if done.returncode:
        print((done.stdout + done.stderr)[-3000:])


def stamp(line: str) -> datetime:
    """When a line was logged."""
    return datetime.strptime(line[1:24], "%Y-%m-%d %H:%M:%S,%f")


def main() -> None:
    """Run the requested parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "parts", nargs="*", default=["steps", "decode", "study", "packs"], help="steps, decode, study, packs"
    )
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_model(work / "model", device)
        if {"steps", "decode"} & set(options.parts):
            base = load_base(ModelConfig(name_or_path=str(work / "model")))
            if "steps" in options.parts:
                steps(base, work)
            if "decode" in options.parts:
                decode(base)
            del base
        if "study" in options.parts:
            study(work)
        if "packs" in options.parts:
            packs(work)


if __name__ == "__main__":
    main()
