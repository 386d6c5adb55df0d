"""Small models with random weights, made on the spot."""

from __future__ import annotations

from pathlib import Path


def make_tiny_encoder(folder: Path, *, seed: int = 0) -> Path:
    """Write a two-layer BERT that reads characters to `folder`: for BERTScore where the scores are not the point."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    characters = [chr(code) for code in range(33, 127)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{char}" for char in characters)]
    BertTokenizer(vocab={token: number for number, token in enumerate(tokens)}).save_pretrained(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokens), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder)
    return folder
