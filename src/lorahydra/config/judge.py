"""The configuration of the judge: who judges, by which rubric, within which limits and for how much money."""

from __future__ import annotations

import os
import re
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, Literal
from urllib.parse import urlsplit

from lorahydra.config.checks import at_least, check_types, not_blank, within
from lorahydra.config.judge_registry import NO_JUDGE, PANEL, registered_judges
from lorahydra.config.showing import short_repr
from lorahydra.errors import ConfigError, JudgeNotFoundError, JudgeSetupError

__all__ = [
    "NOT_A_NAME",
    "CriterionConfig",
    "JudgeConfig",
    "RubricConfig",
    "ServiceConfig",
    "refuse_secret",
]

NOT_A_NAME = (
    "judge.api_key_env takes the name of an environment variable (capital letters, digits and _), not the key itself: "
    "put the key into a variable"
)
IN_A_MAPPING = re.compile(r"[{,]\s*['\"]?(\w+)['\"]?\s*:\s*(\[[^\]]*\]|[^,{}]*)")
"""Keys and their values in a mapping, as `judges.openai={model: M, options: {top_p: 1}}` has them."""
SECRET_NAME = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)


@dataclass
class CriterionConfig:
    """One criterion by which answers are judged (`conf/judge/rubric`)."""

    description: str = ""
    """What the judge is asked to look at."""
    weight: float = 1.0
    """Weight in the score, relative to the other criteria; with 0 it is judged but does not count."""


@dataclass
class RubricConfig:
    """The criteria by which answers are judged (`conf/judge/rubric`)."""

    language: Literal["en", "ru"] = "en"
    """Language of the prompt around the rubric: `en` or `ru`."""
    instructions: str = ""
    """Beginning of the prompt: the judge's role and what matters."""
    criteria: dict[str, CriterionConfig] = field(default_factory=dict)
    """The criteria by name; each is judged from 0 to 5."""

    __repr__ = short_repr

    def __post_init__(self) -> None:
        check_types("judge.rubric", self)
        for name, criterion in self.criteria.items():
            key = f"judge.rubric.criteria.{name}"
            if not re.fullmatch(r"[^\W\d]\w*", name):
                raise ConfigError(f"{key}: the name of a criterion may have letters, digits and _ only")
            not_blank(f"{key}.description", criterion.description)
            at_least(f"{key}.weight", criterion.weight, 0)
        if len({name.lower() for name in self.criteria}) < len(self.criteria):
            raise ConfigError("judge.rubric.criteria: two names differ only in capital letters")
        if self.criteria and not any(criterion.weight for criterion in self.criteria.values()):
            raise ConfigError("judge.rubric.criteria: all weights are 0, so nothing would count")


@dataclass
class ServiceConfig:
    """Which model judges, where it is and how it is asked: what each judge of a panel has of its own."""

    name: str = "none"
    """`none` scores with BERTScore only; `lorahydra judges list` shows the others."""
    model: str | None = None
    """The judging model, as the service names it; for `local`, what `model.name_or_path` takes."""
    base_url: str | None = None
    """Address of the service's API; by default the SDK's own."""
    auth_url: str | None = None
    """Address that issues access tokens, for services that have one (GigaChat)."""
    api_key_env: str | list[str] | None = None
    """Name of the environment variable with the key, or a list of names, of which the first that is set counts. Never
    the key itself."""
    scope: str | None = None
    """GigaChat: `GIGACHAT_API_PERS`, `GIGACHAT_API_B2B` or `GIGACHAT_API_CORP`."""
    ca_bundle_file: str | None = None
    """PEM file of certificates to trust, if a well-known authority did not issue the service's."""
    verify_ssl_certs: bool = True
    """Check the service's certificate. With `false`, anybody between you and the service can read the key and data."""
    temperature: float = 0.0
    """0 makes verdicts repeatable, as far as the service can."""
    max_output_tokens: int = 1024
    """Longest reply; after a truncated reply the judge is asked again with twice as much, up to four times this."""
    structured_output: bool = True
    """Ask for JSON of the verdict's schema if the service can do that; replies are checked either way."""
    options: dict[str, Any] = field(default_factory=dict)
    """Settings that only this judge has; see its file in `conf/judge`."""
    concurrency: int = 8
    """Calls at the same time."""
    requests_per_minute: float | None = None
    """The service's limit for this process; no limit when unset."""
    prompt_price: float = 0.0
    """Price of a million tokens sent."""
    completion_price: float = 0.0
    """Price of a million tokens received."""

    __repr__ = short_repr


@dataclass(repr=False)
class JudgeConfig(ServiceConfig):
    """The LLM that scores answers (`conf/judge`)."""

    rubric: RubricConfig = field(default_factory=RubricConfig)
    """The criteria by which answers are judged."""
    judges: list[str] = field(default_factory=list)
    """The judges of `judge=panel`, whose mean counts. Each has the settings of its file in `conf/judge` and those in
    `judges.NAME`."""
    members: dict[str, ServiceConfig] = field(default_factory=dict)
    """Filled in: the settings of each judge of the panel."""
    n_examples: int | Literal["all"] = 5
    """How many validation examples are judged, or `all`; the seed draws them, the same ones for every trial."""
    test_examples: int | Literal["all"] = "all"
    """How many test examples are judged, or `all`, for the winner and for the untuned model."""
    min_coverage: float = 0.8
    """The trial fails if a smaller share of the chosen examples got a verdict."""
    finalists: int = 3
    """Before the winner is named, trials race for verdicts on more examples (docs/choosing.md). They get no more
    verdicts than it takes to judge this many trials on all validation examples; with 0 or 1 there is no race."""
    max_calls: int | None = None
    """Another limit on the verdicts that the race asks for; none when unset."""
    repeats: int = 1
    """Verdicts for each example in the race; their mean counts."""
    overlap: bool = True
    """Judge while this machine does other work: BERTScore and the untuned model's predictions."""
    timeout: float = 60.0
    """Seconds that one call may take. An example is given up after five times as long, with all retries and the time
    between them."""
    max_retries: int = 8
    """Further calls for an example after a temporary fault: no connection, a limit, a reply without a verdict."""
    cache: bool = True
    """Keep verdicts in `LORAHYDRA_DATA_CACHE`, or else `LORAHYDRA_CACHE`, so that nothing is judged twice."""
    max_cost: float | None = None
    """Judging stops before this process has spent more with these settings, in the currency of the prices."""
    prompt_wording: Literal[1, 2] = 2
    """Texts around the rubric: 2, or 1 as earlier versions wrote them. A study that began with 1 keeps it."""
    self_test: bool = True
    """Before anything is trained, have four fixed answers judged, once a day for a service. The run ends at once if the
    key is refused, the scale is wrong, or a wrong answer scores like a right one."""
    trace: bool = True
    """Record each call as an MLflow trace."""

    __repr__ = short_repr

    def __post_init__(self) -> None:
        if self.name not in (NO_JUDGE, PANEL, *registered_judges()):
            raise JudgeNotFoundError(self.name, registered_judges())
        self._check_panel()
        self._check_secrets()
        check_types("judge", self)
        self._check_addresses()
        within("judge.temperature", self.temperature, 0, 2)
        for name in ("n_examples", "test_examples", "max_output_tokens", "repeats", "concurrency"):
            at_least(f"judge.{name}", getattr(self, name), 1)
        at_least("judge.finalists", self.finalists, 0)
        at_least("judge.max_calls", self.max_calls, 0)
        within("judge.min_coverage", self.min_coverage, 0, 1)
        at_least("judge.requests_per_minute", self.requests_per_minute, 0, exclusive=True)
        at_least("judge.timeout", self.timeout, 0, exclusive=True)
        for name in ("max_retries", "prompt_price", "completion_price"):
            at_least(f"judge.{name}", getattr(self, name), 0)
        at_least("judge.max_cost", self.max_cost, 0, exclusive=True)
        if self.max_cost is not None and not any(self.prices):
            raise ConfigError(
                "judge.max_cost needs judge.prompt_price and judge.completion_price: what a million tokens cost"
            )
        if self.name != NO_JUDGE and not self.rubric.criteria:
            raise ConfigError("judge.rubric.criteria is empty: choose a rubric, for example judge/rubric=default")

    @property
    def asked(self) -> dict[str, JudgeConfig]:
        """The judges that are asked, by name: those of a panel with its rubric and limits, or else this one alone."""
        if self.name != PANEL:
            return {self.name: self}
        return {label: self._member(label) for label in self.judges}

    def _member(self, label: str) -> JudgeConfig:
        alone: dict[str, Any] = {"judges": [], "members": {}, "max_cost": None}
        return replace(self, **vars(self.members[label]), **alone)

    @property
    def prices(self) -> tuple[float, float]:
        """What a million tokens sent and received cost, added up over the judges that are asked."""
        each = [self.members[label] for label in self.judges] if self.name == PANEL else [self]
        return sum(one.prompt_price for one in each), sum(one.completion_price for one in each)

    @property
    def key_names(self) -> list[str]:
        """Names of the environment variables that may hold the key, in order."""
        if self.api_key_env is None:
            return []
        return [self.api_key_env] if isinstance(self.api_key_env, str) else list(self.api_key_env)

    def api_key(self) -> str | None:
        """The key, from the first variable of `api_key_env` that is set; None if none is set.

        Raises:
            JudgeSetupError: The variable holds characters that cannot be part of a key.
        """
        for name in self.key_names:
            if key := os.environ.get(name, "").strip():
                if not key.isascii() or not key.isprintable():
                    raise JudgeSetupError(
                        f"the value of {name} has characters that cannot be part of a key: copy the key again"
                    )
                return key
        return None

    def require_api_key(self) -> str:
        """The key of a service that cannot be used without one; `JudgeSetupError` if no variable holds it."""
        if (key := self.api_key()) is not None:
            return key
        first, *others = self.key_names or ["judge.api_key_env"]
        also = f" (or {', '.join(others)})" if others else ""
        raise JudgeSetupError(f"judge {self.name} needs a key: put it into the environment variable {first}{also}")

    def _check_panel(self) -> None:
        if self.name != PANEL:
            if self.judges:
                raise ConfigError(f"judge.judges is for judge={PANEL}, and the judge is {self.name}")
            return
        if len(set(self.judges)) < 2 or len(set(self.judges)) < len(self.judges):
            raise ConfigError(
                f"judge.judges=[{','.join(self.judges)}]: name at least two different judges, as in "
                "judge.judges=[gemini,openai]"
            )
        for one in fields(ServiceConfig):
            default = one.default if one.default is not MISSING else {}
            if one.name != "name" and getattr(self, one.name) != default:
                raise ConfigError(f"judge.{one.name}: each judge of a panel has its own: judges.NAME.{one.name}")
        if missing := [label for label in self.judges if label not in self.members]:
            raise ConfigError(f"judge.members has no settings of {missing[0]}")
        for label, member in self.members.items():
            if not re.fullmatch(r"[A-Za-z_]\w*", label, re.ASCII):
                raise ConfigError(f"judge.judges: {label!r} cannot be the name of a judge: use letters, digits and _")
            if member.name in (NO_JUDGE, PANEL):
                raise ConfigError(f"judge.judges: {label} cannot be a member of a panel")
        for label in self.judges:
            try:
                self._member(label)  # which is checked where it is made
            except ConfigError as error:
                own = "|".join(one.name for one in fields(ServiceConfig))
                said = re.sub(rf"\bjudge\.({own})\b", rf"judges.{label}.\1", str(error))
                raise error if said == str(error) else ConfigError(said) from error

    def _check_secrets(self) -> None:
        # These messages do not repeat the values, which may be secrets.
        names = self.api_key_env
        listed = names if isinstance(names, list) else [] if names is None else [names]
        if not all(isinstance(name, str) and re.fullmatch(r"[A-Z_][A-Z0-9_]*", name) for name in listed):
            raise ConfigError(NOT_A_NAME)
        for name in self.options:
            if SECRET_NAME.search(str(name)):
                raise ConfigError(
                    f"judge.options.{name}: configs must not hold secrets; name a variable in judge.api_key_env"
                )

    def _check_addresses(self) -> None:
        for name in ("base_url", "auth_url"):
            value = getattr(self, name)
            if value is None:
                continue
            try:
                parts = urlsplit(value)
                valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
            except ValueError:
                valid = False
            if not valid:
                raise ConfigError(f"judge.{name} is not a valid address: give http(s)://HOST[:PORT][/PATH]")
            if parts.username or parts.password or parts.query or parts.fragment:
                raise ConfigError(f"judge.{name} takes only an address, without a user, password, ? or #")


def refuse_secret(override: str) -> None:
    """Refuse an override that contains a secret key, before Hydra writes it to a file, without repeating the key."""
    key, _, value = override.partition("=")
    group, _, name = key.lstrip("+~").partition(".")
    if group == "judges":
        name = name.partition(".")[2]
    elif group != "judge" or name.startswith("rubric"):  # which has the names of criteria
        return
    for inner, given in [(name, value), *IN_A_MAPPING.findall(value)]:
        _refuse_secret(inner, given)


def _refuse_secret(name: str, value: str) -> None:
    """The same for the value of one key of a judge."""
    if name == "api_key_env":
        if not re.fullmatch(r"[A-Z0-9_\[\]'\", ]*|null", value):
            raise ConfigError(NOT_A_NAME)
    elif name in ("base_url", "auth_url"):
        if "@" in value or "?" in value:
            raise ConfigError(f"judge.{name} takes only an address, without a user, password, ? or #")
    elif name not in {field.name for field in fields(JudgeConfig)} and SECRET_NAME.search(name):
        raise ConfigError(
            f"judge.{name}: configs must not hold secrets; put the key into a variable, see judge.api_key_env"
        )
