"""LoRA training written with PEFT and torch alone, to compare lorahydra's with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import AutoModelForCausalLM

from lorahydra.training.batches import epoch_order


def plain_losses(
    folder: Path, data: Any, *, r: int, alpha: int, seed: int, batch: int, rate: float, epochs: int
) -> list[float]:
    """Loss of each optimiser step, over the same order of examples, with all logits and an attention mask."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    # lorahydra draws initial weights on one thread, so that they do not depend on the machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    settings = LoraConfig(r=r, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, settings).train()
    torch.set_num_threads(threads)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    total = epochs * -(-len(data) // batch)
    losses: list[float] = []
    for epoch in range(epochs):
        order = epoch_order(data.lengths, batch, seed, epoch, group_by_length=True)
        for start in range(0, len(order), batch):
            ids, labels, mask = padded([data[index] for index in order[start : start + batch]])
            logits = model(input_ids=ids, attention_mask=mask).logits
            loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
            for group in optimizer.param_groups:
                group["lr"] = rate * (total - len(losses)) / total
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(float(loss.detach()))
    return losses


def padded(rows: list[Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, labels and attention mask of a batch."""
    longest = max(len(row["input_ids"]) for row in rows)

    def column(name: str, filler: int) -> torch.Tensor:
        return torch.tensor([[*map(int, row[name])] + [filler] * (longest - len(row[name])) for row in rows])

    mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
    return column("input_ids", 0), column("labels", -100), torch.tensor(mask)
