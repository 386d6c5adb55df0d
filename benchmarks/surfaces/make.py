r"""A grid of trials with the score of every example, stored for `benchmarks/replay.py`.

    python benchmarks/surfaces/make.py --rows demo --training-rows 64 --loss-rows 32 --unseen-rows 80 --out \
        benchmarks/surfaces/smollm2-demo.parquet                                    # is in the repository: RECORDED
    python benchmarks/surfaces/make.py --rows path/to/rows.jsonl --out benchmarks/surfaces/smollm2-gsm8k.parquet
    python benchmarks/surfaces/make.py --model path/to/model --device cuda --rows … --out …

Each trial is trained on the same short rows with the same `lora_alpha`, and answers the validation
rows and rows that it is never chosen by ("unseen"). One line of the file is one trial; the line of rank 0 is the
untuned model. Started again, the command goes on where it was, so that a kill loses no more than the trials that were
being trained. The cells come in an order in which a part of the grid is useful: every second rate first.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lorahydra.config.schema import (
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    LoraConfig,
    ModelConfig,
    TrainingConfig,
)
from lorahydra.data import ChatFormat, load_splits, tokenize
from lorahydra.evaluation import EvaluationSet
from lorahydra.modeling.base import load_tokenizer
from lorahydra.modeling.generation import generate, stop_tokens
from lorahydra.modeling.precision import matmul_precision
from lorahydra.training import TrainedAdapter, TrainingJob, train_pack
from lorahydra.trial.predict import Answers, answer_together
from lorahydra.trial.prepare import Prepared, prepare
from lorahydra.utils.progress import Progress

QUIET = Progress(live=False)
SCORES = pa.list_(pa.float32())
SCHEMA = pa.schema(
    {
        "learning_rate": pa.float64(),
        "r": pa.int32(),
        "lora_alpha": pa.int32(),
        "seed": pa.int32(),
        # BERTScore F1 of each row; null if the training failed.
        "validation": SCORES,
        "unseen": SCORES,
        # The validation loss of the training so far, and after how many steps.
        "loss": SCORES,
        "loss_step": pa.list_(pa.int32()),
        # Of the checkpoint that was kept: the best one.
        "best_step": pa.int32(),
        "adapter_bytes": pa.int64(),
        "train_seconds": pa.float32(),
        "answer_seconds": pa.float32(),
        "failure": pa.string(),
    }
)
SETTINGS = b"settings"
"""Key of the file's metadata: everything that the scores depend on, as JSON."""
RECORDED = ("--training-rows=64", "--loss-rows=32", "--unseen-rows=80", "--new-tokens=48")
"""Of `smollm2-demo.parquet`."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One trial of the grid."""

    learning_rate: float
    r: int
    seed: int


def main() -> None:
    """Train the cells that the file does not have yet."""
    options = arguments()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        config = experiment(options, work)
        prepared = prepare(config)
        if options.loss_rows:
            few = prepared.splits.validation.part(np.arange(options.loss_rows))
            losses = tokenize(few, prepared.chat, max_length=config.data.max_length, overlong=config.data.overlong)
            prepared = dataclasses.replace(prepared, eval_tokens=losses)
        settings = described(options, config, prepared)
        done = read(options.out, settings)
        pack = options.pack or (1 if prepared.base.device.type == "cpu" else 8)
        if not done:
            done.append(untuned(config, prepared))
            write(options.out, done, settings)
        finished = {(trial["learning_rate"], trial["r"], trial["seed"]) for trial in done}
        todo = [cell for cell in cells(options) if dataclasses.astuple(cell) not in finished]
        for part in packs(todo, pack):
            started = time.perf_counter()
            done += trained(part, options, config, prepared, work)
            write(options.out, done, settings)
            show(done[-len(part) :], time.perf_counter() - started, len(done) - 1)


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """What to train, on what; by default what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", required=True, help="a file of any format that lorahydra reads, or `demo`")
    parser.add_argument("--out", type=Path, required=True, help="the Parquet file")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--encoder", default="all-minilm-l6-v2", help="of BERTScore")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument(
        "--precision", default="medium", help="of float32 products in training and answering: highest, high or medium"
    )
    parser.add_argument("--pack", type=int, help="trials trained side by side: 1 on a CPU, 8 on a GPU")
    parser.add_argument("--rates", type=float, nargs=3, default=(2e-5, 2e-3, 10), metavar=("LOW", "HIGH", "COUNT"))
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 64, 8, 32])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--alpha", type=int, default=32, help="lora_alpha, the same for all ranks")
    parser.add_argument("--training-rows", type=int, default=96)
    parser.add_argument("--validation-rows", type=int, default=64)
    parser.add_argument("--loss-rows", type=int, help="validation rows for the loss; all by default")
    parser.add_argument("--unseen-rows", type=int, default=200, help="or as many as are left")
    parser.add_argument("--new-tokens", type=int, default=48, help="longest reference and answer")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--evals-per-epoch", type=int, default=2)
    return parser.parse_args(words)


def experiment(options: argparse.Namespace, work: Path) -> ExperimentConfig:
    """The settings that all cells share, with the rows written to `work`."""
    model = ModelConfig(name_or_path=options.model, device=options.device)
    files = {name: str(path) for name, path in choose_rows(options, model, work).items()}
    return ExperimentConfig(
        model=model,
        data=DataConfig(overlong="drop", max_leakage=1.0, **files),
        training=TrainingConfig(
            num_train_epochs=options.epochs,
            per_device_train_batch_size=options.batch,
            evals_per_epoch=options.evals_per_epoch,
            matmul_precision=options.precision,
        ),
        evaluation=EvaluationConfig(
            max_new_tokens=options.new_tokens,
            bertscore_model=options.encoder,
            # On a CPU as in the recorded grid, which more padding would change in the last digits.
            batch_size=None if options.device == "cuda" else 40,
        ),
        output_dir=str(work / "out"),
    )


def choose_rows(options: argparse.Namespace, model: ModelConfig, work: Path) -> dict[str, Path]:
    """The shortest rows whose answers fit, shuffled by their content and cut into three files."""
    data = DataConfig(train_file=options.rows, validation_fraction=0.1, test_fraction=0.0, overlong="drop")
    chat = ChatFormat(load_tokenizer(model))
    found: dict[bytes, tuple[int, list[dict[str, str]]]] = {}
    for split in load_splits(data, 0):
        tokens = tokenize(split, chat, max_length=data.max_length, overlong=data.overlong)
        used = split.part(tokens.fit.used)
        lengths = zip(tokens.lengths.tolist(), tokens.answers(), used.example_keys(), used, strict=True)
        for length, answer, key, example in lengths:
            if len(answer) <= options.new_tokens:
                turns = [{"role": turn.role, "content": turn.content} for turn in example.messages]
                found[hashlib.sha256(key).digest()] = (length, turns)
    least = options.training_rows + options.validation_rows
    if len(found) <= least:
        raise SystemExit(
            f"{options.rows} has {len(found)} rows that are short enough, and more than {least} are needed"
        )
    short = sorted(found, key=lambda key: (found[key][0], key))[: least + options.unseen_rows]
    rows = [json.dumps({"messages": found[key][1]}) + "\n" for key in sorted(short)]
    validation, training = options.validation_rows, options.validation_rows + options.training_rows
    parts = {"validation": rows[:validation], "train": rows[validation:training], "test": rows[training:]}
    paths = {f"{name}_file": work / f"{name}.jsonl" for name in parts}
    for path, lines in zip(paths.values(), parts.values(), strict=True):
        path.write_text("".join(lines), "utf-8")
    return paths


def cells(options: argparse.Namespace) -> list[Cell]:
    """The cells of the grid: for each seed every second rate first, from the highest, and one rank after another."""
    low, high, count = options.rates[0], options.rates[1], int(options.rates[2])
    rates = [float(f"{low * (high / low) ** (step / max(1, count - 1)):.3g}") for step in range(count)]
    halves = (rates[::-2], rates[-2::-2])
    return [
        Cell(rate, rank, seed) for seed in options.seeds for half in halves for rank in options.ranks for rate in half
    ]


def packs(todo: Sequence[Cell], size: int) -> list[list[Cell]]:
    """The cells in groups of one seed, no larger than `size`."""
    groups: list[list[Cell]] = []
    for cell in todo:
        if groups and len(groups[-1]) < size and groups[-1][0].seed == cell.seed:
            groups[-1].append(cell)
        else:
            groups.append([cell])
    return groups


def trained(
    part: Sequence[Cell], options: argparse.Namespace, config: ExperimentConfig, prepared: Prepared, work: Path
) -> list[dict[str, Any]]:
    """Train cells side by side; their lines of the file."""
    trials: list[dict[str, Any]] = []
    jobs = []
    for number, cell in enumerate(part):
        trial = {**dataclasses.asdict(cell), "lora_alpha": options.alpha, "loss": [], "loss_step": []}
        trials.append(trial)

        def heard(values: Any, step: int, trial: dict[str, Any] = trial) -> None:
            if "eval/loss" in values and step not in trial["loss_step"]:
                trial["loss"].append(values["eval/loss"])
                trial["loss_step"].append(step)

        training = dataclasses.replace(config.training, learning_rate=cell.learning_rate)
        jobs.append(
            TrainingJob(LoraConfig(r=cell.r, lora_alpha=options.alpha), training, cell.seed, work / str(number), heard)
        )
    outcomes = train_pack(prepared.base, jobs, prepared.train_tokens, prepared.eval_tokens, QUIET)
    adapters = []
    for trial, outcome in zip(trials, outcomes, strict=True):
        if not isinstance(outcome, TrainedAdapter):
            trial["failure"] = f"{getattr(outcome, 'reason', type(outcome).__name__)}: {outcome}"
            continue
        adapters.append((trial, outcome.folder))
        trial["best_step"], trial["train_seconds"] = outcome.best_step, outcome.seconds / len(part)
        trial["adapter_bytes"] = (outcome.folder / "adapter_model.safetensors").stat().st_size
    if adapters:
        folders = [folder for _, folder in adapters]
        for name, examples in sets(prepared).items():
            with matmul_precision(prepared.base, config.training.matmul_precision):
                answers = answer_together(config, prepared, examples, folders, QUIET)
            for (trial, _), answer in zip(adapters, answers, strict=True):
                keep(trial, name, answer, examples, prepared)
    return trials


def untuned(config: ExperimentConfig, prepared: Prepared) -> dict[str, Any]:
    """The line of the untuned model."""
    trial: dict[str, Any] = {"learning_rate": 0.0, "r": 0, "lora_alpha": 0, "seed": 0, "adapter_bytes": 0}
    base, chat = prepared.base, prepared.chat
    for name, examples in sets(prepared).items():
        started = time.perf_counter()
        with matmul_precision(base, config.training.matmul_precision):
            [tokens] = generate(
                base.model,
                examples.prompts,
                stop=stop_tokens(base.model, chat.end_tokens),
                ends=chat.text_end,
                max_new_tokens=config.evaluation.max_new_tokens,
                batch_size=32,
                progress=QUIET,
            )
        keep(trial, name, Answers(tokens, time.perf_counter() - started), examples, prepared)
    return trial


def sets(prepared: Prepared) -> dict[str, EvaluationSet]:
    """The rows that are answered."""
    assert prepared.test_set is not None
    return {"validation": prepared.eval_set, "unseen": prepared.test_set}


def keep(trial: dict[str, Any], name: str, answers: Answers, examples: EvaluationSet, prepared: Prepared) -> None:
    """Add the scores of answers to a trial's line."""
    texts = [prepared.chat.answer_text(answer) for answer in answers.tokens]
    trial[name] = prepared.scorer.score(texts, examples.references).f1
    trial["answer_seconds"] = trial.get("answer_seconds", 0.0) + answers.seconds


def described(options: argparse.Namespace, config: ExperimentConfig, prepared: Prepared) -> dict[str, Any]:
    """What the scores depend on, apart from the cell; device and packs change them only by rounding."""
    names = ("encoder", "alpha", "new_tokens", "epochs", "batch", "evals_per_epoch", "loss_rows", "precision")
    splits = {split.name: f"{len(split)} rows, {split.digest[:16]}" for split in prepared.splits}
    return {
        "model": Path(options.model).name,
        "rows": Path(options.rows).name,
        **{name: getattr(options, name) for name in names},
        **{"schedule": config.training.lr_scheduler_type, "warmup": config.training.warmup_ratio, "splits": splits},
    }


def read(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The trials that the file has; none if there is no file."""
    if not path.is_file():
        return []
    table = pq.read_table(path)
    before = json.loads(table.schema.metadata[SETTINGS])
    if before != settings:
        different = sorted(name for name in settings if before.get(name) != settings[name])
        raise SystemExit(f"{path} was made with other settings ({', '.join(different)}): give another --out")
    return table.to_pylist()


def write(path: Path, trials: Sequence[dict[str, Any]], settings: dict[str, Any]) -> None:
    """Write the file; a kill leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = SCHEMA.with_metadata({SETTINGS: json.dumps(settings).encode()})
    new = path.with_suffix(".new")
    pq.write_table(pa.Table.from_pylist(list(trials), schema), new, compression="zstd", compression_level=19)
    new.replace(path)


def show(trials: Sequence[dict[str, Any]], seconds: float, count: int) -> None:
    """Print the trials."""
    for trial in trials:
        means = [math.fsum(trial[name]) / len(trial[name]) for name in ("validation", "unseen") if trial.get(name)]
        said = " ".join(f"{mean:.4f}" for mean in means) or trial.get("failure")
        losses = " ".join(f"{loss:.3f}" for loss in trial["loss"])
        print(
            f"{count:4} rate {trial['learning_rate']:.2e} r {trial['r']:3} seed {trial['seed']}: {said}; "
            f"loss {losses}; {seconds / len(trials):.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
