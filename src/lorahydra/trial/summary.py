"""The end of a trial on the terminal: the scores of both models, and some of their predictions side by side."""

from __future__ import annotations

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from lorahydra.evaluation import Evaluation, EvaluationSet
from lorahydra.names import SCORES, score_info
from lorahydra.trial.score import TrialScores

__all__ = ["write_scores", "write_summary"]

EXAMPLES = 2
LONGEST_CELL = 400


def write_summary(console: Console, examples: EvaluationSet, scores: TrialScores) -> None:
    """Print some predictions of the baseline and the tuned model beside each other, and the table of scores."""
    if scores.baseline is not None:
        console.print(_predictions(examples, scores.tuned, scores.baseline))
    write_scores(console, scores)


def write_scores(console: Console, scores: TrialScores, *, split: str = "validation") -> None:
    """Print the table of scores on a split, and whether tuning helped."""
    console.print(_scores(scores.tuned, scores.baseline, split))
    for sentence in scores.sentences:
        # On one line at any terminal width, because people search for it in logs.
        console.print(sentence, highlight=False, soft_wrap=True)


def _scores(tuned: Evaluation, baseline: Evaluation | None, split: str) -> RenderableType:
    title = f"Scores on {len(tuned.predictions.texts)} {split} examples"
    if tuned.verdicts is not None:
        title += f", {tuned.verdicts.judged} of them judged by {tuned.verdicts.session.config.name}"
    table = Table(title=title)
    for name in ("score", "baseline", "tuned", "difference"):
        table.add_column(name, justify="left" if name == "score" else "right")
    before, after = {} if baseline is None else baseline.means, tuned.means
    for score in (*SCORES, *tuned.predictions.metrics, *tuned.predictions.totals):
        info = score_info(score)
        if score in before and score in after:
            change = info.text(after[score] - before[score], "+")
            table.add_row(info.title, info.text(before[score]), info.text(after[score]), change)
        elif score in after:
            table.add_row(info.title, "-", info.text(after[score]), "-")
    return table


def _predictions(examples: EvaluationSet, tuned: Evaluation, baseline: Evaluation) -> RenderableType:
    table = Table(title="The same prompt before and after", show_lines=True)
    for name in ("prompt", "reference", "baseline", "tuned"):
        table.add_column(name, ratio=1, overflow="fold")
    cells = zip(examples.texts, examples.references, baseline.predictions.texts, tuned.predictions.texts, strict=True)
    for _, row in zip(range(EXAMPLES), cells, strict=False):
        table.add_row(*(_plain(cell) for cell in row))
    return table


def _plain(text: str) -> RenderableType:
    # As text, so that brackets in a prediction are not taken for markup.
    return Text(text if len(text) <= LONGEST_CELL else f"{text[:LONGEST_CELL]}…")
