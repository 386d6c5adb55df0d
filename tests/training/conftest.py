"""A tiny base model and tokenised examples."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from lorahydra.config.schema import ModelConfig
from lorahydra.modeling.base import BaseModel, load_base


class Examples:
    """Tokenised examples of different lengths: the answer repeats the question's bytes, upper-cased."""

    def __init__(self, count: int, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.rows = []
        for _ in range(count):
            prompt = random.integers(70, 96, random.integers(3, 30)).tolist()
            answer = [token - 26 for token in prompt[:12]] + [2]
            labels = [-100] * (len(prompt) + 1) + answer
            self.rows.append({"input_ids": [1, *prompt, *answer], "labels": labels})

    @property
    def lengths(self) -> list[int]:
        return [len(row["input_ids"]) for row in self.rows]

    @property
    def digest(self) -> str:
        return hashlib.sha256(str(self.rows).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self.rows[index]


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> BaseModel:
    """The tiny model, which every training leaves as it was."""
    return load_base(ModelConfig(name_or_path=str(tiny_model), device="cpu"))


@pytest.fixture
def examples() -> Examples:
    return Examples(24)


@pytest.fixture
def eval_examples() -> Examples:
    return Examples(8, seed=1)
