"""Whether a tokenizer and a model belong together: a token without an embedding would crash the first step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorahydra.errors import ModelError
from lorahydra.modeling.huggingface import loading

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["check_token_ids", "check_vocabulary"]


def check_vocabulary(model: PreTrainedModel, tokenizer: Any, name: str) -> None:
    """Check that the tokens of any text, and the special ones in use, have embeddings in the model called `name`.

    Some models have added tokens beyond the embedding, for pictures: only a text that holds one is refused
    (`check_token_ids`). A padding token beyond it is replaced by the end of text, as padding is masked.
    """
    with loading(f"the tokenizer of {name} cannot be used"):
        rows = _embedding_rows(model)
        added = set(tokenizer.added_tokens_decoder)
        tokens = {number: token for token, number in tokenizer.get_vocab().items() if number not in added}
        tokens |= {tokenizer.convert_tokens_to_ids(t): t for t in (tokenizer.bos_token, tokenizer.eos_token) if t}
        highest = max(tokens, default=-1)
        if highest >= rows:
            raise ModelError(
                f"the tokenizer of {name} has the token {tokens[highest]!r} with id {highest}, and the model has "
                f"embeddings for {rows} tokens only: the tokenizer belongs to another model; copy or download both "
                "again"
            )
        if tokenizer.pad_token_id >= rows and tokenizer.eos_token is not None:
            tokenizer.pad_token = tokenizer.eos_token
    settings = model.generation_config
    ends = settings.eos_token_id if settings is not None else None
    for end in ends if isinstance(ends, list) else [ends]:
        if end is not None and type(end) is not int:
            raise ModelError(f"the generation_config.json of {name} has eos_token_id={ends}: token ids are numbers")


def check_token_ids(model: PreTrainedModel, highest: int, what: str) -> None:
    """Check that all tokens of `what`, of which `highest` is the largest id, have embeddings."""
    rows = _embedding_rows(model)
    if highest >= rows:
        raise ModelError(
            f"{what} has the token id {highest}, and the model has embeddings for {rows} tokens: the text or the chat "
            "template holds a special token that this model does not have"
        )


def _embedding_rows(model: PreTrainedModel) -> int:
    """How many tokens the model has embeddings for."""
    return int(model.get_input_embeddings().weight.shape[0])
