"""Everything a trial needs before it can train: data, base model, tokens, prompts and the scorer."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import time
from dataclasses import dataclass

from lorahydra.config.schema import ExperimentConfig
from lorahydra.data import ChatFormat, DataReport, DataSplits, Split, TokenizedSplit, load_splits, tokenize
from lorahydra.errors import ConfigError
from lorahydra.evaluation import EvaluationSet
from lorahydra.evaluation.bertscore import BertScorer, load_scorer
from lorahydra.judges import JudgeSession, load_session
from lorahydra.modeling.base import BaseModel, load_base
from lorahydra.modeling.generation import check_room, context_window
from lorahydra.modeling.origin import AdapterOrigin
from lorahydra.modeling.vocabulary import check_token_ids

__all__ = ["Prepared", "origin_of", "prepare", "test_examples"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """What `prepare` made; all of it may be shared by trials."""

    splits: DataSplits
    base: BaseModel
    scorer: BertScorer
    train_tokens: TokenizedSplit
    eval_tokens: TokenizedSplit
    eval_set: EvaluationSet
    chat: ChatFormat
    """How prompts are written."""
    session: JudgeSession | None
    """The judge; None without one."""
    seconds: float
    """Wall time of preparing."""


def prepare(config: ExperimentConfig) -> Prepared:
    """Read, check and tokenise the data, load the models and set up the judge; what was loaded is not loaded again.

    Raises:
        DataError: The data cannot be used.
        ModelError: The base model or the encoder cannot be used.
        ServiceError: A hub is needed and cannot be reached.
        JudgeSetupError: The judge's SDK or key is missing.
    """
    started = time.perf_counter()
    # First: a missing key is found within a second.
    session = load_session(config.judge)
    if session is None:
        logger.info("LLM judge off: BERTScore only")
    else:
        logger.info("LLM judge on: %s (%s)", config.judge.name, session.judge.model)
    splits = load_splits(config.data, config.seed)
    sizes = (len(split) for split in (splits.train, splits.validation, splits.test or ()))
    logger.info("Data: %d training, %d validation and %d test rows", *sizes)
    base = load_base(config.model)
    scorer = load_scorer(config.evaluation, base.device)
    chat = _chat(base, config)
    if chat.is_plain:
        logger.info("%s has no chat template: using lorahydra's plain one (### User / ### Assistant)", base.source)
    train_tokens, eval_tokens = (
        _tokenized(split, chat, config, splits.report) for split in (splits.train, splits.validation)
    )
    eval_set = _evaluation_set(splits.validation, chat)
    check_room(base.model, eval_set.prompts, config.evaluation.max_new_tokens)
    _check_context(base, max(train_tokens.lengths.max(), eval_tokens.lengths.max()))
    for tokens, split in ((train_tokens, splits.train), (eval_tokens, splits.validation)):
        check_token_ids(base.model, tokens.highest_id, f"a row of {split.source}")
    return Prepared(
        splits=splits,
        base=base,
        scorer=scorer,
        train_tokens=train_tokens,
        eval_tokens=eval_tokens,
        eval_set=eval_set,
        chat=chat,
        session=session,
        seconds=time.perf_counter() - started,
    )


def test_examples(prepared: Prepared, config: ExperimentConfig) -> EvaluationSet | None:
    """The test split as prompts and references, which only a study's winner sees; None where there is none.

    Raises:
        ConfigError: A prompt leaves no room for an answer.
    """
    base, split = prepared.base, prepared.splits.test
    if split is None or not len(split):
        return None
    examples = _evaluation_set(split, prepared.chat)
    check_room(base.model, examples.prompts, config.evaluation.max_new_tokens)
    return examples


def origin_of(config: ExperimentConfig, prepared: Prepared, run_id: str) -> AdapterOrigin:
    """What an adapter of this experiment belongs to.

    Args:
        config: The experiment.
        prepared: Its base model and prompts.
        run_id: MLflow's run of the trial.
    """
    base = prepared.base
    model = dataclasses.replace(
        config.model,
        name_or_path=base.source,
        gguf_file=None if base.source.endswith(".gguf") else config.model.gguf_file,
        dtype=str(base.dtype).removeprefix("torch."),
        chat_template=prepared.chat.template,
    )
    return AdapterOrigin(
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


def _tokenized(split: Split, chat: ChatFormat, config: ExperimentConfig, report: DataReport) -> TokenizedSplit:
    tokens = tokenize(split, chat, max_length=config.data.max_length, overlong=config.data.overlong)
    report.add_lengths(split.name, tokens.source_lengths, config.data.max_length)
    report.warnings += tokens.warnings
    for count, what in ((tokens.dropped, "left out"), (tokens.truncated, "cut")):
        if count:
            logger.warning(
                "%d of %d examples of the %s split were %s: longer than data.max_length=%d tokens",
                count,
                len(split),
                split.name,
                what,
                config.data.max_length,
            )
    return tokens


def _check_context(base: BaseModel, longest: int) -> None:
    window = context_window(base.model)
    if window is not None and longest > window:
        raise ConfigError(
            f"an example has {longest} tokens, and {base.source} takes {window}: set data.max_length={window} and "
            "data.overlong=drop or truncate"
        )


def _evaluation_set(split: Split, chat: ChatFormat) -> EvaluationSet:
    examples = list(split)
    content = f"{split.digest} {chat.fingerprint}"
    if any(map(chat.hides, examples)):
        # Such prompts and references were others before; all others were the same, and are known by the same digest.
        content += " with names of control tokens as text"
    return EvaluationSet(
        prompts=[chat.prompt_ids(example) for example in examples],
        texts=[chat.prompt_text(example) for example in examples],
        references=[chat.reference(example, split.source) for example in examples],
        digest=hashlib.sha256(content.encode()).hexdigest(),
    )
