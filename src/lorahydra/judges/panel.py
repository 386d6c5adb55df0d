"""`judge=panel`: several judges score each answer, and the mean of their scores counts.

Each member has its own limits, prices and place in the cache, where its verdicts are the same as without a panel. All
members are shown the same prompt and share `judge.max_cost`. An example has a verdict only if every member gave one: a
mean over changing members would depend on which of them are missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lorahydra.config.judge import JudgeConfig
from lorahydra.judges.base import Judge, JudgeCase, Verdict
from lorahydra.judges.cache import VerdictCache
from lorahydra.judges.judgement import Judgement, mean
from lorahydra.judges.running import RunningJudgement
from lorahydra.judges.session import JudgeSession, SingleSession
from lorahydra.utils.progress import Progress

__all__ = ["PanelJudgement", "PanelSession"]


class PanelSession(JudgeSession):
    """The judges of a panel, each with a session of its own.

    Args:
        config: The panel's settings.
        judges: Its members by name, as `config.asked` has them.
        cache: Where their verdicts are kept.
    """

    def __init__(self, config: JudgeConfig, judges: Mapping[str, Judge], cache: VerdictCache | None) -> None:
        super().__init__(config)
        settings = config.asked
        self.members = {
            label: SingleSession(settings[label], judge, cache, label=label, purse=self.purse)
            for label, judge in judges.items()
        }
        self._cache = cache

    @property
    def model(self) -> str:
        """See `JudgeSession.model`."""
        return " + ".join(member.model for member in self.members.values())

    @property
    def cache(self) -> VerdictCache | None:  # all members get it
        """See `JudgeSession.cache`."""
        return self._cache

    @cache.setter
    def cache(self, cache: VerdictCache | None) -> None:
        self._cache = cache
        for member in self.members.values():
            member.cache = cache

    def close(self) -> None:
        """See `JudgeSession.close`."""
        for member in self.members.values():
            member.close()


class PanelJudgement(Judgement):
    """The judging of some examples by all members of a panel at the same time."""

    def __init__(self, session: PanelSession, cases: Sequence[JudgeCase | None], repeats: int) -> None:
        self.session = session
        self.chosen = sum(case is not None for case in cases)
        self._members = {label: RunningJudgement(member, cases, repeats) for label, member in session.members.items()}
        self.members = self._members
        for member in self._members.values():
            # Without one of them there is no mean, so that further calls to the others would be wasted.
            member.on_error = self.stop

    def start(self) -> None:
        """Begin to call the members that are services."""
        for member in self._members.values():
            member.start()

    def stop(self) -> None:
        """See `Judgement.stop`."""
        for member in self._members.values():
            member.stop()

    def wait(self, progress: Progress | None = None) -> Judgement:
        """See `Judgement.wait`."""
        self.start()
        try:
            for member in self._members.values():
                member.wait(progress)
        finally:
            self.stop()
        members = self._members
        self.error = next((member.error for member in members.values() if member.error is not None), None)
        self.calls = [call for member in members.values() for call in member.calls]
        self.cache_hits = sum(member.cache_hits for member in members.values())
        self.failures = sum(member.failures for member in members.values())
        self.seconds = max(member.seconds for member in members.values())
        self.missing = [
            next((f"{label}: {reason}" for label, reason in zip(members, reasons, strict=True) if reason), None)
            for reasons in zip(*(member.missing for member in members.values()), strict=True)
        ]
        # Members that gave fewer repeats than others: only complete sets count.
        self.verdicts = [
            tuple(_together(list(members), verdicts) for verdicts in zip(*given, strict=False))
            for given in zip(*(member.verdicts for member in members.values()), strict=True)
        ]
        return self


def _together(labels: Sequence[str], verdicts: Sequence[Verdict]) -> Verdict:
    """The mean of all members' verdicts on one answer."""
    first = verdicts[0]
    return Verdict(
        scores={name: mean([verdict.scores[name] for verdict in verdicts]) for name in first.scores},
        score=mean([verdict.score for verdict in verdicts]),
        reasoning="\n".join(f"{label}: {each.reasoning}" for label, each in zip(labels, verdicts, strict=True)),
        raw_reply="\n".join(verdict.raw_reply for verdict in verdicts),
        model=" + ".join(verdict.model for verdict in verdicts),
        prompt_tokens=sum(verdict.prompt_tokens for verdict in verdicts),
        completion_tokens=sum(verdict.completion_tokens for verdict in verdicts),
        prompt_version=first.prompt_version,
        latency=max(verdict.latency for verdict in verdicts),
    )
