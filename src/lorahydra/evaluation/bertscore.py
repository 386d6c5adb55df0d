"""BERTScore (arXiv 1904.09675) through the `bert-score` package, its encoder loaded once per process."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorahydra.config.schema import EvaluationConfig
from lorahydra.errors import ConfigError, ModelError
from lorahydra.modeling.failures import first_line
from lorahydra.modeling.hub import snapshot
from lorahydra.modeling.packaged import PACKAGED, packaged_path
from lorahydra.modeling.quiet import no_progress_bars

__all__ = ["BertScorer", "BertScores", "load_scorer"]

ENCODER_FILES = ("*.json", "*.txt", "*.model", "model*.safetensors")


@dataclass(frozen=True)
class BertScores:
    """Scores of each example, in order; 0…1 unless rescaled."""

    precision: list[float]
    recall: list[float]
    f1: list[float]


class BertScorer:
    """Compares answers with references; `load_scorer` makes one."""

    def __init__(self, scorer: Any, batch_size: int) -> None:
        self._scorer = scorer
        self._batch_size = batch_size

    def score(self, answers: Sequence[str], references: Sequence[str]) -> BertScores:
        """Compare each answer with its reference; an empty answer scores 0."""
        # bert-score gives an empty answer 0 too, but with transformers 5 it crashes before.
        written = [index for index, answer in enumerate(answers) if answer.strip()]
        columns = [[0.0] * len(answers) for _ in range(3)]
        if written:
            scores = self._scorer.score(
                [answers[index] for index in written],
                [references[index] for index in written],
                batch_size=self._batch_size,
            )
            for column, values in zip(columns, scores, strict=True):
                for index, value in zip(written, values.tolist(), strict=True):
                    column[index] = value
        return BertScores(*columns)


def load_scorer(config: EvaluationConfig, device: torch.device) -> BertScorer:
    """BERTScore with the encoder that `config` names, loaded once per process.

    Raises:
        ConfigError: The encoder's layer, or the baseline to rescale with, is not known.
        ModelError: The encoder cannot be loaded.
        ServiceError: The encoder is on the hub, and the hub cannot be reached.
    """
    scorer = _scorer(
        config.bertscore_model,
        config.bertscore_num_layers,
        config.rescale_with_baseline,
        config.lang,
        str(device),
    )
    return BertScorer(scorer, config.bertscore_batch_size)


@functools.lru_cache(maxsize=1)
def _scorer(name: str, num_layers: int | None, rescale: bool, lang: str | None, device: str) -> Any:
    from bert_score import BERTScorer
    from bert_score.utils import model2layers

    packaged = PACKAGED.get(name)
    layers = num_layers or (packaged.num_layers if packaged else model2layers.get(name))
    if layers is None:
        raise ConfigError(
            f"evaluation.bertscore_num_layers is not set, and bert-score knows no best layer for {name}: give one"
        )
    baseline = _baseline_file(name, lang) if rescale else None
    folder = _encoder_folder(name)
    _check_safe(folder, name)
    try:
        with no_progress_bars():
            scorer = BERTScorer(
                model_type=str(folder),
                num_layers=layers,
                device=device,
                rescale_with_baseline=rescale,
                lang=lang,
                baseline_path=baseline,
            )
    except AssertionError as error:
        # bert-score's own check of the layer.
        raise ConfigError(f"evaluation.bertscore_num_layers={layers} is not possible: {error}") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"evaluation.bertscore_model={name} cannot be loaded: {first_line(error)}") from error
    _limit_length(scorer)
    return scorer


def _encoder_folder(name: str) -> Path:
    """Where the encoder's files are: packaged, local or from the hub."""
    key = "evaluation.bertscore_model"
    if name in PACKAGED:
        folder = packaged_path(name)
        if folder is None:
            raise ModelError(f"{key}={name} is not fetched yet: run `lorahydra models fetch {name}`")
        return folder
    path = Path(name).expanduser()
    if path.is_dir():
        return path.resolve()
    return snapshot(name, None, ENCODER_FILES, _is_complete, key)


def _is_complete(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("model*.safetensors"))


def _check_safe(folder: Path, name: str) -> None:
    """Refuse an encoder that would be unpickled or brings code: bert-score's own loading would take both."""
    key = f"evaluation.bertscore_model={name}"
    if not any(folder.glob("model*.safetensors")):
        raise ModelError(f"{key} cannot be loaded: {folder} has no safetensors weights")
    for settings in ("config.json", "tokenizer_config.json"):
        path = folder / settings
        if path.is_file() and '"auto_map"' in path.read_text("utf-8", errors="replace"):
            raise ModelError(f"{key} brings its own code ({settings}: auto_map), which is never run: choose another")


def _baseline_file(name: str, lang: str | None) -> str:
    """The baseline that bert-score ships for a model and language."""
    import bert_score

    folder = Path(bert_score.__file__).parent / "rescale_baseline"
    path = folder / (lang or "") / f"{name}.tsv"
    if not path.is_file():
        known = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        raise ConfigError(
            f"evaluation.rescale_with_baseline=true: bert-score ships no baseline of {name} for lang={lang} "
            f"(languages: {', '.join(known)}); turn it off or choose another model"
        )
    return str(path)


def _limit_length(scorer: Any) -> None:
    """Cap texts at the encoder's positions: some tokenizers name no limit, and longer texts would crash it."""
    positions = getattr(scorer._model.config, "max_position_embeddings", None)
    if positions and scorer._tokenizer.model_max_length > positions:
        # RoBERTa's position ids start behind its padding id.
        scorer._tokenizer.model_max_length = positions - 2
