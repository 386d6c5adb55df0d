"""Which keys may change between results that are compared with each other; all comparisons use these lists.

`SCORE_NEUTRAL_KEYS` may change between the trials of a study and for its finalists, `REJUDGING_NEUTRAL_KEYS` when
answers are judged again, `REPRODUCTION_NEUTRAL_KEYS` when a run is repeated. Any other key decides what a score means.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from lorahydra.config.compose import flatten
from lorahydra.config.schema import ExperimentConfig

__all__ = [
    "PATHS",
    "REJUDGING_NEUTRAL_KEYS",
    "REPRODUCTION_NEUTRAL_KEYS",
    "SCORE_NEUTRAL_KEYS",
    "differing",
    "may_change",
]

OF_ONE_JUDGE = re.compile(r"^(judge\.members|judges)\.\w+\.")
JUDGE_NEUTRAL_KEYS = frozenset(
    f"judge.{name}"
    for name in (
        *("base_url", "auth_url", "api_key_env", "ca_bundle_file", "verify_ssl_certs"),
        *("concurrency", "requests_per_minute", "timeout", "max_retries", "overlap"),
        *("prompt_price", "completion_price", "max_cost", "cache", "trace", "self_test"),
        *("test_examples", "repeats", "finalists", "max_calls"),
    )
)
"""How the judge is reached, and its time and cost limits. The last four matter only at the end of a study: trials
are compared again, and the winner's score on the test split is compared with no trial's."""

SCORE_NEUTRAL_KEYS = JUDGE_NEUTRAL_KEYS | {
    *("tracking.", "search."),
    *("output_dir", "study", "model.device"),
    # Digests show which training and validation rows these keys leave.
    *("data.test_file", "data.test_split", "data.max_leakage", "data.pii"),
    *("evaluation.batch_size", "evaluation.bertscore_batch_size", "evaluation.bootstrap_samples"),
    *("evaluation.few_shot", "evaluation.forgetting"),
    *("training.save_steps", "training.resume", "training.logging_steps", "training.per_device_eval_batch_size"),
    "training.pack",
}
"""No adapter, answer or verdict depends on these. A name that ends with a dot stands for its whole group."""

REJUDGING_NEUTRAL_KEYS = JUDGE_NEUTRAL_KEYS | {"judge.min_coverage"}
"""With another coverage, a failed trial may count; in a study that would depend on when the trial was run."""

PATHS = (
    *(
        "data.train_file",
        "data.replay.file",
        "data.validation_file",
        "data.test_file",
        "model.name_or_path",
        "model.chat_template",
    ),
    *("evaluation.bertscore_model", "evaluation.bertscore_baseline_file"),
)
"""Keys whose value may be a file or folder."""

REPRODUCTION_NEUTRAL_KEYS = SCORE_NEUTRAL_KEYS | set(PATHS)
"""Data and model may be in another place: their digests show whether they are the same."""


def may_change(key: str, free: Collection[str]) -> bool:
    """Whether a key, such as `judge.timeout`, is in one of the lists.

    What may change for a judge may change for each judge of a panel, too.
    """
    key = OF_ONE_JUDGE.sub("judge.", key)
    return key in free or any(key.startswith(name) for name in free if name.endswith("."))


def differing(one: ExperimentConfig, other: ExperimentConfig, free: Collection[str]) -> list[str]:
    """Keys, such as `lora.r`, in which two experiments differ although they are not in the list `free`."""
    before, now = flatten(one), flatten(other)
    keys = dict.fromkeys([*before, *now])
    return [key for key in keys if before.get(key) != now.get(key) and not may_change(key, free)]
