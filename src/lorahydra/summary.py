"""The end of a trial on the terminal: baseline, tuned, difference, and answers side by side."""

from __future__ import annotations

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from lorahydra.evaluation import Evaluation, EvaluationSet
from lorahydra.evaluation.scoring import Gain

__all__ = ["verdict", "write_summary"]

EXAMPLES = 2
LONGEST_CELL = 400
ROWS = {
    "BERTScore precision": "bertscore_precision",
    "BERTScore recall": "bertscore_recall",
    "BERTScore F1": "bertscore_f1",
    "combined": "combined",
}


def verdict(gain: Gain) -> str:
    """One honest sentence on whether tuning helped."""
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
    console.print(_scores(tuned, baseline))
    if gain is not None:
        console.print(verdict(gain), highlight=False)


def _scores(tuned: Evaluation, baseline: Evaluation | None) -> RenderableType:
    table = Table(title=f"Scores on {len(tuned.answers)} validation examples")
    for name in ("score", "baseline", "tuned", "difference"):
        table.add_column(name, justify="left" if name == "score" else "right")
    for name, key in ROWS.items():
        after = tuned.means[key]
        if baseline is None:
            table.add_row(name, "-", f"{after:.4f}", "-")
        else:
            before = baseline.means[key]
            table.add_row(name, f"{before:.4f}", f"{after:.4f}", f"{after - before:+.4f}")
    return table


def _answers(examples: EvaluationSet, tuned: Evaluation, baseline: Evaluation) -> RenderableType:
    table = Table(title="The same prompt before and after", show_lines=True)
    for name in ("prompt", "reference", "untuned", "tuned"):
        table.add_column(name, ratio=1, overflow="fold")
    cells = zip(examples.texts, examples.references, baseline.answers, tuned.answers, strict=True)
    for _, row in zip(range(EXAMPLES), cells, strict=False):
        table.add_row(*(_plain(cell) for cell in row))
    return table


def _plain(text: str) -> RenderableType:
    # As text, so that brackets in an answer are not taken for markup.
    return Text(text if len(text) <= LONGEST_CELL else f"{text[:LONGEST_CELL]}…")
