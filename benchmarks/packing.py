"""Training of k adapters side by side: time, memory, and how far each is from being trained alone.

    python benchmarks/packing.py --shape qwen3-0.6b                # random weights, nothing is downloaded
    python benchmarks/packing.py --shape tiny --device cpu         # hardly any arithmetic: a stand-in for a GPU
    python benchmarks/packing.py --model path/to/model --trainer 0
    python benchmarks/packing.py --study 8                         # whole studies with packs of 8, and without packs

The last one needs all that lorahydra needs, the others torch, transformers, peft and this repository's `src`. Rows are
printed as they are measured. `trainer` is
`transformers.Trainer` with PEFT's layers, one job after another; `s/adapter` is the time of a step divided by the
adapters that it trains; `x trainer` and `x alone` say how many times as many adapters a second that gives;
`difference` is the largest relative difference of a training loss from that of the same adapter alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PrinterCallback,
    Qwen3Config,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from lorahydra.config.schema import LoraConfig, TrainingConfig
from lorahydra.modeling.base import BaseModel, prepare
from lorahydra.modeling.devices import resolve_device, resolve_dtype
from lorahydra.modeling.lora import adapter, save_adapter
from lorahydra.modeling.memory import release_memory
from lorahydra.training import TrainingJob, train_pack
from lorahydra.training.batches import collate
from lorahydra.training.loss import CompletionLoss
from lorahydra.utils.progress import Progress

SHAPES = {
    "qwen3-0.6b": Qwen3Config(
        hidden_size=1024,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=3072,
        vocab_size=151936,
        tie_word_embeddings=True,
    ),
    "smollm2-135m": LlamaConfig(
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        vocab_size=49152,
        tie_word_embeddings=True,
    ),
    "tiny": LlamaConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        vocab_size=256,
    ),
}
"""The speed of the last is limited by the launching of operations, like that of a small model on a GPU."""
SEED = 0
RATES = (1e-4, 2e-4, 3e-4, 5e-4)


class Rows:
    """Random tokens of one length, the second half labelled."""

    digest = "random"

    def __init__(self, count: int, length: int, vocabulary: int) -> None:
        random = torch.Generator().manual_seed(SEED)
        self._ids = torch.randint(0, vocabulary, (count, length), generator=random)
        self._labels = self._ids.clone()
        self._labels[:, : length // 2] = -100
        self.lengths = [length] * count

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self._ids[index], "labels": self._labels[index]}


class Clock:
    """When each step's figures arrived, and its loss; from then on, on a GPU, its work is done.

    On a CPU the time is that of the processor, which other programs do not change: use one thread (OMP_NUM_THREADS=1).
    """

    def __init__(self, device: torch.device) -> None:
        self._now = time.process_time if device.type == "cpu" else time.perf_counter
        self.times: list[float] = []
        self.losses: list[float] = []

    def __call__(self, values: Mapping[str, float], step: int) -> None:
        """Hear of a step."""
        if "train/loss" in values:
            self.times.append(self._now())
            self.losses.append(values["train/loss"])

    def step_seconds(self, warmup: int) -> float:
        """Mean over the steps, without the first ones and without the last, which waits for the GPU."""
        return (self.times[-2] - self.times[warmup - 1]) / (len(self.times) - 1 - warmup)


@dataclasses.dataclass
class Measured:
    """One row of the table."""

    name: str
    adapters: int
    step_seconds: float
    """Of a step of all adapters."""
    peak_gib: float
    losses: list[list[float]]


def load(options: argparse.Namespace) -> BaseModel:
    """A model of the shape or from the folder, frozen."""
    device = resolve_device(options.device)
    dtype = resolve_dtype(options.dtype, device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.manual_seed(SEED)
    if options.model:
        model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype, local_files_only=True).to(device)
    else:
        with device:
            model = AutoModelForCausalLM.from_config(SHAPES[options.shape], dtype=dtype).to(device)
    prepare(model)
    return BaseModel(model, None, device, dtype, options.model or options.shape, None)  # type: ignore[arg-type]


def jobs_of(
    indices: Sequence[int], device: torch.device, options: argparse.Namespace, folder: Path
) -> tuple[list[TrainingJob], list[Clock]]:
    """Jobs with different rates and scales, and what they report."""
    clocks = [Clock(device) for _ in indices]
    jobs = []
    for index, clock in zip(indices, clocks, strict=True):
        rank = options.rank[index % len(options.rank)]
        lora = LoraConfig(r=rank, lora_alpha=rank * (1 + index % 3), lora_dropout=options.dropout)
        training = TrainingConfig(
            max_steps=options.warmup + options.steps,
            per_device_train_batch_size=options.batch,
            learning_rate=RATES[index % len(RATES)],
            evals_per_epoch=0,
        )
        jobs.append(TrainingJob(lora, training, SEED, folder / str(index), clock))
    return jobs, clocks


class CompletionTrainer(Trainer):
    """Trainer with the loss on completions only."""

    def __init__(self, model: Any, **options: Any) -> None:
        super().__init__(model=model, data_collator=collate, **options)
        self.model_accepts_loss_kwargs = True
        self.completion_loss = CompletionLoss(model)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Mean over the labelled tokens of the batch."""
        return self.completion_loss(model, inputs["input_ids"], inputs["labels"])[0] / num_items_in_batch


class Logs(TrainerCallback):
    """Passes losses on."""

    def __init__(self, job: TrainingJob) -> None:
        self._job = job

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Hear of a step."""
        if "loss" in (logs or {}):
            self._job.on_metrics({"train/loss": float(logs["loss"])}, state.global_step)


def by_trainer(base: BaseModel, job: TrainingJob, rows: Any) -> None:
    """Train one adapter with `transformers.Trainer` and PEFT's layers."""
    config = job.training
    arguments = TrainingArguments(
        output_dir=str(job.output_dir),
        max_steps=config.max_steps,
        per_device_train_batch_size=config.per_device_train_batch_size,
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup_ratio,
        optim=config.optim,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        seed=job.seed,
        use_cpu=base.device.type == "cpu",
        dataloader_pin_memory=base.device.type == "cuda",
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
    )
    with adapter(base, job.lora, job.seed) as model:
        trainer = CompletionTrainer(model, args=arguments, train_dataset=rows, callbacks=[Logs(job)])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        save_adapter(model, job.output_dir / "adapter")


def measure(
    name: str, indices: Sequence[int], base: BaseModel, options: argparse.Namespace, rows: Sequence[Any]
) -> Measured:
    """Train the adapters of these numbers: side by side, or for `trainer` one after the other."""
    release_memory()
    cuda = base.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        jobs, clocks = jobs_of(indices, base.device, options, Path(folder))
        if name == "trainer":
            for job in jobs:
                by_trainer(base, job, rows[0])
            seconds = sum(clock.step_seconds(options.warmup) for clock in clocks)
        else:
            for outcome in train_pack(base, jobs, *rows, Progress(live=False)):
                if isinstance(outcome, Exception):
                    raise outcome
            seconds = clocks[0].step_seconds(options.warmup)
    if cuda:
        torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else float("nan")
    return Measured(name, len(indices), seconds, peak, [clock.losses for clock in clocks])


def show(row: Measured, trainer: Measured | None, alone: Mapping[int, Measured], tokens: int) -> None:
    """Print a row of the table."""
    each = row.step_seconds / row.adapters
    gains = [side.step_seconds / side.adapters / each if side else float("nan") for side in (trainer, alone.get(0))]
    differences = [
        abs(one - other) / abs(other)
        for index, losses in enumerate(row.losses)
        if index in alone
        for one, other in zip(losses, alone[index].losses[0], strict=True)
    ]
    print(
        f"{row.name:>8} {row.adapters:>3} {row.step_seconds:>10.4f} {each:>10.5f} {tokens / each:>12.0f} "
        f"{gains[0]:>10.2f} {gains[1]:>8.2f} {row.peak_gib:>9.2f} {max(differences, default=float('nan')):>11.1e}",
        flush=True,
    )


def studies(options: argparse.Namespace) -> None:
    """Studies of the same trials: one by one, side by side, and side by side with each way of pruning."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from benchmarks.studies import run_study, write_model

    device = resolve_device(options.device)
    rates = ", ".join(f"{n}e-5" for n in range(1, options.trials + 1))
    common = (
        *(f"training.learning_rate=choice({rates})", f"hydra.sweeper.n_trials={options.trials}"),
        *(f"training.max_steps={options.trial_steps}", f"training.per_device_train_batch_size={options.batch}"),
        *(f"lora.r={options.rank[0]}", f"model.device={device.type}", f"model.dtype={options.dtype}"),
        "training.evals_per_epoch=8",
    )
    kinds = {
        "one by one": (1, "none"),
        f"packs of {options.study}": (options.study, "none"),
        f"packs of {options.study}, median": (options.study, "median"),
        f"packs of {options.study}, halving": (options.study, "halving"),
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if options.model:
            (work / "model").symlink_to(Path(options.model).resolve())
        else:
            write_model(work / "model", SHAPES[options.shape], resolve_dtype(options.dtype, device), device.type)
        for number, (kind, (size, pruner)) in enumerate(kinds.items()):
            settings = (*common, f"training.pack={size}", f"hydra/sweeper/pruner={pruner}")
            # A sentence has 38 bytes, and what stands around it about 80.
            sentences = max(0, (options.length - 80) // 38)
            rows.append((kind, run_study(work, f"study{number}", kind, sentences, *settings)))
    print("               study  trials  pruned   seconds  s/trial  x one by one  same scores")
    alone = rows[0][1]
    for kind, done in rows:
        if done is None or alone is None:
            continue
        same = sum(alone.scores.get(rate) == score for rate, score in done.scores.items())
        print(
            f"{kind:>20} {done.trials:>7} {done.pruned:>7} {done.seconds:>9.1f} {done.seconds / done.trials:>8.2f} "
            f"{alone.seconds / done.seconds:>13.2f} {f'{same} of {len(done.scores)}':>12}"
        )


def main() -> None:
    """Measure each k in turn, or studies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-0.6b")
    parser.add_argument("--model", help="folder of a model, instead of a shape")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--dtype", default="auto", help="auto, float32 or bfloat16")
    parser.add_argument("--adapters", type=int, nargs="+", default=[2, 4, 8, 16], help="beside one alone")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=200, help="tokens of a row")
    parser.add_argument("--rank", type=int, nargs="+", default=[16], help="of the adapters in turn")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--warmup", type=int, default=5, help="steps that are not timed")
    parser.add_argument("--steps", type=int, default=15, help="steps that are timed")
    parser.add_argument("--alone", type=int, default=2, help="adapters that are also trained alone, to compare with")
    parser.add_argument("--trainer", type=int, default=2, help="jobs for transformers.Trainer, one after the other")
    parser.add_argument("--study", type=int, metavar="K", help="compare whole studies, with packs of K, instead")
    parser.add_argument("--trials", type=int, default=16, help="of each study")
    parser.add_argument("--trial-steps", type=int, default=100, help="optimiser steps of each trial of a study")
    options = parser.parse_args()
    if options.study:
        studies(options)
        return
    base = load(options)
    vocabulary, rows = base.model.config.vocab_size, options.batch * (options.warmup + options.steps)
    data = Rows(rows, options.length, vocabulary), Rows(options.batch, options.length, vocabulary)
    card = torch.cuda.get_device_name(base.device) if base.device.type == "cuda" else "CPU"
    print(
        f"{base.source} on {card}, {base.dtype}, torch {torch.__version__}, {options.batch} x {options.length} tokens"
    )
    print("    what   k     s/step  s/adapter     tokens/s  x trainer  x alone  peak GiB  difference", flush=True)
    tokens, trainer = options.batch * options.length, None
    alone: dict[int, Measured] = {}
    if options.trainer:
        trainer = measure("trainer", range(options.trainer), base, options, data)
        show(trainer, trainer, alone, tokens)
    for index in range(options.alone):
        alone[index] = measure("alone", [index], base, options, data)
    show(alone[0], trainer, alone, tokens)
    for k in options.adapters:
        show(measure("pack", range(k), base, options, data), trainer, alone, tokens)


if __name__ == "__main__":
    main()
