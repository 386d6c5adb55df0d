"""Everything a trial needs before it can train: data, base model, tokens, prompts and the scorer."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

from lorahydra.config.schema import ExperimentConfig
from lorahydra.data import ChatFormat, DataReport, DataSplits, Split, TokenizedSplit, load_splits, tokenize
from lorahydra.errors import DataError
from lorahydra.evaluation import EvaluationSet
from lorahydra.judges import JudgeSession, ready_session
from lorahydra.metrics.bertscore import BertScorer, load_scorer
from lorahydra.metrics.loading import Metric, load_metrics
from lorahydra.modeling.base import BaseModel, load_base
from lorahydra.modeling.devices import dtype_name, resolve_device
from lorahydra.modeling.generation import context_window
from lorahydra.modeling.metadata import AdapterMetadata
from lorahydra.modeling.quantization import check_quantization
from lorahydra.modeling.vocabulary import check_token_ids
from lorahydra.training import check_settings

__all__ = ["Prepared", "metadata_of", "prepare"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """The result of `prepare`; trials may share all of it."""

    splits: DataSplits
    """The rows that are used: those that fit."""
    base: BaseModel
    scorer: BertScorer
    metrics: Mapping[str, Metric]
    """The other metrics, by name."""
    train_tokens: TokenizedSplit
    eval_tokens: TokenizedSplit
    eval_set: EvaluationSet
    test_set: EvaluationSet | None
    """The test split, which only a study's winner sees; None if there is none."""
    chat: ChatFormat
    """How prompts are written."""
    session: JudgeSession | None
    """The judge; None without one."""
    seconds: float
    """Wall time of preparing."""

    @property
    def rows_digest(self) -> str:
        """Digests of the training rows, of the validation rows, and of how many tokens of each are used."""
        used = hashlib.sha256()
        for tokens in (self.train_tokens, self.eval_tokens):
            used.update(tokens.lengths.astype("<i8").tobytes())
        digests = (self.splits.train.digest, self.splits.validation.digest, used.hexdigest())
        return " ".join(digest[:12] for digest in digests)


def prepare(config: ExperimentConfig) -> Prepared:
    """Read, check and tokenise the data, load the models and set up the judge; what is already loaded is used again."""
    started = time.perf_counter()
    check_settings(config.lora, config.training)
    check_quantization(config.model, resolve_device(config.model.device))
    # First, so that a missing or refused key shows within seconds.
    session = ready_session(config.judge)
    metrics = load_metrics(config.metrics)
    splits = load_splits(config.data, config.seed)
    _check_method(config, splits.report)
    _say(splits.report)
    base = load_base(config.model)
    scorer = load_scorer(config.evaluation, base.device)
    chat = _chat(base, config)
    if chat.is_plain:
        logger.info("%s has no chat template: using lorahydra's plain one (### User / ### Assistant)", base.source)
    tokens = {split.name: _tokenized(split, chat, base, config) for split in splits}
    for split in splits:
        tokenized = tokens[split.name]
        check_token_ids(base.model, tokenized.highest_id, f"a row of {split.source}")
        splits.report.warnings += tokenized.warnings
        splits.report.add_fit(split.name, tokenized.fit)
    splits = splits.part({name: tokenized.fit.used for name, tokenized in tokens.items()})
    sizes = (len(split) for split in (splits.train, splits.validation, splits.test or ()))
    logger.info("Data: %d training, %d validation and %d test rows", *sizes)
    _say(splits.report)
    eval_set = _evaluation_set(splits.validation, tokens["validation"], chat)
    _try_out(metrics, eval_set)
    return Prepared(
        splits=splits,
        base=base,
        scorer=scorer,
        metrics=metrics,
        train_tokens=tokens["train"],
        eval_tokens=tokens["validation"],
        eval_set=eval_set,
        test_set=None if splits.test is None else _evaluation_set(splits.test, tokens["test"], chat),
        chat=chat,
        session=session,
        seconds=time.perf_counter() - started,
    )


def _check_method(config: ExperimentConfig, report: DataReport) -> None:
    """Refuse to learn pairs of answers as if they were answers."""
    source = report.pairs_in
    if source is None or config.training.method == "dpo":
        return
    prompt = source.columns_used.get("prompt", "prompt")
    named = "" if prompt == "prompt" else f" data.columns.prompt={prompt}"
    chosen = source.columns_used["chosen"]
    raise DataError(
        "holds pairs of answers (chosen and rejected): set training.method=dpo to learn which is preferred, or learn "
        f"the chosen answers alone with data.columns.completion={chosen}{named}, or data.columns.messages={chosen} if "
        "they are lists of messages",
        path=source.source,
    )


def metadata_of(config: ExperimentConfig, prepared: Prepared, run_id: str) -> AdapterMetadata:
    """The metadata of an adapter of this experiment, which the MLflow run `run_id` records."""
    base = prepared.base
    model = dataclasses.replace(
        config.model,
        name_or_path=base.source,
        gguf_file=None if base.source.endswith(".gguf") else config.model.gguf_file,
        dtype=dtype_name(base.dtype),
        chat_template=prepared.chat.template,
    )
    return AdapterMetadata(
        model,
        base.digest,
        config.data.system_prompt,
        config.evaluation.max_new_tokens,
        run_id,
        config.data.special_tokens,
    )


def _chat(base: BaseModel, config: ExperimentConfig) -> ChatFormat:
    return ChatFormat(
        base.tokenizer,
        chat_template=config.model.chat_template,
        system_prompt=config.data.system_prompt,
        special_tokens=config.data.special_tokens,
    )


def _tokenized(split: Split, chat: ChatFormat, base: BaseModel, config: ExperimentConfig) -> TokenizedSplit:
    return tokenize(
        split,
        chat,
        max_length=config.data.max_length,
        overlong=config.data.overlong,
        window=context_window(base.model),
        max_new_tokens=0 if split.name == "train" else config.evaluation.max_new_tokens,
    )


_tried: set[object] = set()


def _try_out(metrics: Mapping[str, Metric], examples: EvaluationSet) -> None:
    """Try metrics once per process on the same references: the trials of a study share them."""
    for metric in metrics.values():
        key = (metric.name, metric.function, repr(metric.settings), examples.digest)
        if key not in _tried:
            metric.try_out(examples.texts, examples.references)
            _tried.add(key)


_said: set[object] = set()


def _say(report: DataReport) -> None:
    """Log the warnings about the data once per process: the trials of a study share the data."""
    data = tuple(split.digest for split in report.splits)
    for warning in report.warnings:
        if (data, warning) not in _said:
            _said.add((data, warning))
            logger.warning("Data: %s", warning)


def _evaluation_set(split: Split, tokens: TokenizedSplit, chat: ChatFormat) -> EvaluationSet:
    examples = list(split)
    content = f"{split.digest} {chat.fingerprint}"
    if any(map(chat.hides, examples)):
        # Earlier versions wrote such prompts and references differently, and only these, so only their digest changes.
        content += " with names of control tokens as text"
    return EvaluationSet(
        prompts=tokens.prompts(),
        texts=[chat.prompt_text(example) for example in examples],
        references=[chat.answer_text(answer) for answer in tokens.answers()],
        digest=hashlib.sha256(content.encode()).hexdigest(),
    )
