"""The end of a trial on the terminal: baseline, tuned, difference, and answers side by side."""

from __future__ import annotations

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from lorahydra.evaluation import Evaluation, EvaluationSet
from lorahydra.evaluation.scoring import MINIMUM, Gain
from lorahydra.names import SCORES

__all__ = ["verdict", "write_scores", "write_summary"]

EXAMPLES = 2
LONGEST_CELL = 400


def verdict(gain: Gain) -> str:
    """One honest sentence on whether tuning helped, without a full stop: the only place that says so."""
    if not gain.is_enough:
        examples = f"{gain.count} {'judged ' if gain.judged else ''}example{'s are' if gain.count > 1 else ' is'}"
        return (
            f"{examples} too few to say whether tuning helped: at least {MINIMUM} are needed "
            f"(combined changed by {gain.mean:+.4f})"
        )
    interval = f"{gain.mean:+.4f}, 95 % interval {gain.low:+.4f} to {gain.high:+.4f}"
    if not gain.is_clear:
        return f"No clear difference: combined changed by {interval}"
    return f"Tuning {'helped' if gain.mean > 0 else 'hurt'}: combined changed by {interval}"


def write_summary(
    console: Console,
    examples: EvaluationSet,
    tuned: Evaluation,
    baseline: Evaluation | None,
    gain: Gain | None,
) -> None:
    """Print the table of scores and, beside each other, some answers of the untuned and the tuned model."""
    if baseline is not None:
        console.print(_answers(examples, tuned, baseline))
    write_scores(console, tuned, baseline, gain)


def write_scores(
    console: Console, tuned: Evaluation, baseline: Evaluation | None, gain: Gain | None, *, split: str = "validation"
) -> None:
    """Print the table of scores on a split and whether tuning helped."""
    console.print(_scores(tuned, baseline, split))
    if gain is not None:
        # In one line whatever the width: it is searched for in logs.
        console.print(verdict(gain), highlight=False, soft_wrap=True)


def _scores(tuned: Evaluation, baseline: Evaluation | None, split: str) -> RenderableType:
    title = f"Scores on {len(tuned.predictions.texts)} {split} examples"
    if tuned.verdicts is not None:
        title += f", {tuned.verdicts.judged} of them judged by {tuned.verdicts.config.name}"
    table = Table(title=title)
    for name in ("score", "baseline", "tuned", "difference"):
        table.add_column(name, justify="left" if name == "score" else "right")
    before, after = {} if baseline is None else baseline.means, tuned.means
    for score, info in SCORES.items():
        if score in before and score in after:
            change = info.text(after[score] - before[score], "+")
            table.add_row(info.title, info.text(before[score]), info.text(after[score]), change)
        elif score in after:
            table.add_row(info.title, "-", info.text(after[score]), "-")
    return table


def _answers(examples: EvaluationSet, tuned: Evaluation, baseline: Evaluation) -> RenderableType:
    table = Table(title="The same prompt before and after", show_lines=True)
    for name in ("prompt", "reference", "baseline", "tuned"):
        table.add_column(name, ratio=1, overflow="fold")
    cells = zip(examples.texts, examples.references, baseline.predictions.texts, tuned.predictions.texts, strict=True)
    for _, row in zip(range(EXAMPLES), cells, strict=False):
        table.add_row(*(_plain(cell) for cell in row))
    return table


def _plain(text: str) -> RenderableType:
    # As text, so that brackets in an answer are not taken for markup.
    return Text(text if len(text) <= LONGEST_CELL else f"{text[:LONGEST_CELL]}…")
