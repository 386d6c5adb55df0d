"""Begins to judge, with one judge or with a panel."""

from __future__ import annotations

from collections.abc import Sequence

from lorahydra.judges.base import JudgeCase
from lorahydra.judges.judgement import Judgement
from lorahydra.judges.panel import PanelJudgement, PanelSession
from lorahydra.judges.running import RunningJudgement
from lorahydra.judges.session import JudgeSession, SingleSession

__all__ = ["start_judging"]


def start_judging(session: JudgeSession, cases: Sequence[JudgeCase | None], repeats: int = 1) -> Judgement:
    """Begin to judge; the verdicts are available after `Judgement.wait`.

    Calls begin at once, in threads. A judge that computes on this machine begins in `wait`, and so does any judge with
    `judge.overlap=false`.

    There is a case for each example, or None for those that are not judged. Equal cases are judged once, each
    `repeats` times.
    """
    judgement: PanelJudgement | RunningJudgement
    if isinstance(session, PanelSession):
        judgement = PanelJudgement(session, cases, repeats)
    else:
        assert isinstance(session, SingleSession), "the only other kind"
        judgement = RunningJudgement(session, cases, repeats)
    if session.config.overlap:
        judgement.start()
    return judgement
