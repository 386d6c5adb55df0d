"""The script that a careful user would write without lorahydra: TRL's SFTTrainer, `generate`, `bert_score.score`.

    python benchmarks/baseline_trl.py --model DIR --encoder DIR --train FILE --validation FILE --out DIR

The settings are lorahydra's in `benchmarks/trial.py`: one epoch, batch 4, r 16, all-linear, float32, 96 new tokens.
Gradient checkpointing and bfloat16, which TRL turns on by default, are off: on a CPU both only cost time.
"""

import argparse
import json
from pathlib import Path

import bert_score
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

GENERATE_BATCH = 8
NEW_TOKENS = 96


def read(path: str) -> list[dict[str, str]]:
    """Rows of a JSONL file."""
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


def chat(row: dict[str, str]) -> dict[str, list[dict[str, str]]]:
    """A row in TRL's conversational prompt-completion form."""
    return {
        "prompt": [{"role": "user", "content": row["question"]}],
        "completion": [{"role": "assistant", "content": row["answer"]}],
    }


def main() -> None:
    """Train, generate, score, and write the figures to `OUT/result.json`."""
    parser = argparse.ArgumentParser()
    for name in ("model", "encoder", "train", "validation", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    train_rows, eval_rows = read(options.train), read(options.validation)

    torch.manual_seed(options.seed)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    trainer = SFTTrainer(
        model,
        args=SFTConfig(
            output_dir=options.out,
            per_device_train_batch_size=4,
            num_train_epochs=1,
            learning_rate=2e-4,
            warmup_steps=0.03,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            seed=options.seed,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([chat(row) for row in train_rows]),
        eval_dataset=Dataset.from_list([chat(row) for row in eval_rows]),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.evaluate()
    trainer.save_model(f"{options.out}/adapter")

    model = trainer.model.eval()
    tokenizer.padding_side = "left"
    answers: list[str] = []
    for start in range(0, len(eval_rows), GENERATE_BATCH):
        batch = tokenizer.apply_chat_template(
            [[{"role": "user", "content": row["question"]}] for row in eval_rows[start : start + GENERATE_BATCH]],
            add_generation_prompt=True,
            padding=True,
            return_tensors="pt",
            return_dict=True,
        )
        output = model.generate(**batch, max_new_tokens=NEW_TOKENS, do_sample=False, use_cache=True)
        answers += tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    _, _, f1 = bert_score.score(answers, [row["answer"] for row in eval_rows], model_type=options.encoder, num_layers=6)
    Path(options.out, "result.json").write_text(json.dumps({"bertscore_f1": f1.mean().item()}), "utf-8")


if __name__ == "__main__":
    main()
