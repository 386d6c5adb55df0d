"""The script that a careful user would write without lorahydra: TRL's SFTTrainer, `generate`, `bert_score.score`.

    python benchmarks/baseline_trl.py --model DIR --encoder DIR --train FILE --validation FILE --out DIR
    python benchmarks/baseline_trl.py … --trials 16 --epochs 2 --new-tokens 48

One training has lorahydra's settings in `benchmarks/trial.py`: one epoch, batch 4, r 16, all-linear, float32, 96 new
tokens. With `--trials`, Optuna searches the learning rate and the rank, as `benchmarks/study.py` does. Gradient
checkpointing, which TRL turns on by default, is off, because it only costs time here. On a GPU the model is in bfloat16
and all rows are answered at once.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import bert_score
import optuna
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

ON_GPU = torch.cuda.is_available()
GENERATE_BATCH = 256 if ON_GPU else 8
Turns = list[dict[str, str]]


def read(path: str) -> list[tuple[Turns, str]]:
    """The prompt and the answer of each row of a JSONL file, which has `question` and `answer`, or `messages`."""
    rows = []
    for line in Path(path).read_text("utf-8").splitlines():
        row = json.loads(line)
        if "messages" in row:
            *prompt, answer = row["messages"]
            rows.append((prompt, answer["content"]))
        else:
            rows.append(([{"role": "user", "content": row["question"]}], row["answer"]))
    return rows


def dataset(rows: list[tuple[Turns, str]]) -> Dataset:
    """Rows in TRL's conversational prompt-completion form."""
    turns = [{"prompt": prompt, "completion": [{"role": "assistant", "content": answer}]} for prompt, answer in rows]
    return Dataset.from_list(turns)


def train_and_score(options: argparse.Namespace, rate: float, rank: int, out: Path) -> float:
    """One trial: train, keep the adapter, answer the validation rows; returns their mean BERTScore F1."""
    train_rows, eval_rows = read(options.train), read(options.validation)
    torch.manual_seed(options.seed)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16 if ON_GPU else torch.float32),
        args=SFTConfig(
            output_dir=str(out),
            per_device_train_batch_size=4,
            num_train_epochs=options.epochs,
            learning_rate=rate,
            warmup_steps=0.03,
            bf16=ON_GPU,
            gradient_checkpointing=False,
            use_cpu=not ON_GPU,
            seed=options.seed,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=dataset(train_rows),
        eval_dataset=dataset(eval_rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=rank, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.evaluate()
    trainer.save_model(str(out / "adapter"))
    answers = generate(trainer.model.eval(), tokenizer, [prompt for prompt, _ in eval_rows], options.new_tokens)
    references = [answer for _, answer in eval_rows]
    _, _, f1 = bert_score.score(answers, references, model_type=options.encoder, num_layers=6)
    return float(f1.mean())


def generate(model: Any, tokenizer: Any, prompts: list[Turns], new_tokens: int) -> list[str]:
    """Greedy answers."""
    tokenizer.padding_side = "left"
    answers: list[str] = []
    for start in range(0, len(prompts), GENERATE_BATCH):
        batch = tokenizer.apply_chat_template(
            prompts[start : start + GENERATE_BATCH],
            add_generation_prompt=True,
            padding=True,
            return_tensors="pt",
            return_dict=True,
        ).to(model.device)
        output = model.generate(**batch, max_new_tokens=new_tokens, do_sample=False, use_cache=True)
        answers += tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def main() -> None:
    """Train, generate, score, and write the figures to `OUT/result.json`."""
    parser = argparse.ArgumentParser()
    for name in ("model", "encoder", "train", "validation", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--trials", type=int, help="search with Optuna; otherwise one training")
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--new-tokens", type=int, default=96)
    options = parser.parse_args()
    out = Path(options.out)
    result: dict[str, Any] = {}
    if options.trials is None:
        result["bertscore_f1"] = train_and_score(options, 2e-4, 16, out)
    else:
        seconds, cpu_seconds = [], []

        def objective(trial: optuna.Trial) -> float:
            started, cpu_started = time.perf_counter(), time.process_time()
            rate = trial.suggest_float("learning_rate", 2e-5, 2e-3, log=True)
            rank = trial.suggest_categorical("r", [8, 16, 32, 64])
            score = train_and_score(options, rate, rank, out / str(trial.number))
            seconds.append(time.perf_counter() - started)
            cpu_seconds.append(time.process_time() - cpu_started)
            return score

        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=options.seed))
        study.optimize(objective, n_trials=options.trials)
        result |= {
            "bertscore_f1": study.best_value,
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "params": study.best_params,
        }
    (out / "result.json").write_text(json.dumps(result), "utf-8")


if __name__ == "__main__":
    main()
