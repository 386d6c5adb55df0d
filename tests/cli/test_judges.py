"""`lorahydra judges` as a process: one line, and the right exit code."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.judges.wire import CREDENTIALS, KEY, MODEL, judge_server
from tests.support.programs import ProgramRunner, environment

from lorahydra.cli.commands import commands

pytestmark = [pytest.mark.slow, pytest.mark.service]

Judges = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def judges(programs: ProgramRunner, tmp_path: Path) -> Judges:
    """Runs `lorahydra judges` in an empty folder, with no key but those given."""
    keys = ("GEMINI", "GOOGLE", "OPENAI", "GIGA")
    clean = {name: value for name, value in environment().items() if not name.startswith(keys)}
    clean |= {"NO_PROXY": "*", "LORAHYDRA_CACHE": str(tmp_path / "cache")}

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return programs.run(["-m", "lorahydra", "judges", *arguments], tmp_path, clean | variables)

    return run


def test_the_list_says_what_is_configured(judges: Judges) -> None:
    done = judges("list", GOOGLE_API_KEY=KEY)
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert set(lines) == {"NAME", "gemini", "gemini_legacy", "gigachat", "local", "openai", "panel"}
    assert "gemini-2.5-flash" in lines["gemini"]
    assert "GEMINI_API_KEY or GOOGLE_API_KEY is set" in lines["gemini"]
    assert "GIGACHAT_CREDENTIALS is not set" in lines["gigachat"]
    assert "google-genai 3." in lines["gemini"]
    assert "not needed" in lines["local"]
    assert KEY not in done.stdout


def test_a_check_is_a_few_real_calls(judges: Judges) -> None:
    with judge_server() as server:
        done = judges(
            "check",
            "gigachat",
            f"judge.model={MODEL}",
            f"judge.base_url={server.gigachat}",
            f"judge.auth_url={server.oauth}",
            GIGACHAT_CREDENTIALS=CREDENTIALS,
        )
        assert len(server.self_tests) == 4
    assert done.returncode == 0, done.stderr
    assert "ok: gigachat answered as judge-model-001 in " in done.stdout
    assert "100 of 100 for a right answer (correctness 5, " in done.stdout
    assert "0 for a wrong one, 0 for an empty one, 0 for one that demands the best score" in done.stdout
    assert "1284 tokens sent, 180 received" in done.stdout


@pytest.mark.parametrize(
    ("what", "overrides", "key", "code", "line"),
    [
        ("good", (), "", 2, "judge openai needs a key: put it into the environment variable OPENAI_API_KEY"),
        ("good", (), "sk-wrong-key-55", 2, "judge openai: key refused: HTTP 401 "),
        ("404", (), KEY, 2, f"check judge.model={MODEL} and judge.base_url=http"),
        ("503", ("judge.max_retries=1",), KEY, 3, "judge openai is unavailable: server error: HTTP 503"),
        ("empty", ("judge.max_retries=0",), KEY, 3, "judge openai gave no verdict: empty reply"),
        (
            "good",
            ("judge.base_url=http://127.0.0.1:9/v1", "judge.max_retries=1"),
            KEY,
            3,
            "is unavailable: no connection",
        ),
        ("good", ("judge.base_url=nonsense",), KEY, 2, "judge.base_url is not a valid address"),
        ("good", ("judge.magic=1",), KEY, 2, "unknown key judge.magic"),
    ],
)
def test_a_check_that_fails_says_what_to_mend(
    judges: Judges, what: str, overrides: tuple[str, ...], key: str, code: int, line: str
) -> None:
    with judge_server(self_test=lambda request, attempt: what) as server:
        addresses = () if not key else (f"judge.base_url={server.openai}",)
        arguments = ("check", "openai", f"judge.model={MODEL}", *addresses, *overrides)
        done = judges(*arguments, OPENAI_API_KEY=key)
    assert done.returncode == code, done.stderr
    assert line in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not key or key not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("scores", "code", "line"),
    [
        (
            "0.8",
            3,
            "judge openai gave no verdict: reply without a verdict: the score of correctness is 0.8, which may be",
        ),
        ("80", 3, "the score of correctness is 80, not 0 to 5"),
        (
            "1",
            2,
            "fails its self-test, so its scores would mislead: it gives 20 of 100 to a right answer, 20 to a wrong one",
        ),
        ("4", 2, "choose another judge.model, or go on regardless with judge.self_test=false"),
    ],
)
def test_a_check_fails_where_scores_would_mislead(judges: Judges, scores: str, code: int, line: str) -> None:
    criteria = ("correctness", "instruction_following", "completeness", "style")
    says = json.dumps({"reasoning": "r", "scores": dict.fromkeys(criteria, json.loads(scores))})
    with judge_server(self_test=lambda request, attempt: f"says {says}") as server:
        settings = (f"judge.model={MODEL}", f"judge.base_url={server.openai}", "judge.max_retries=0")
        done = judges("check", "openai", *settings, OPENAI_API_KEY=KEY)
    assert done.returncode == code, done.stderr
    assert line in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not done.stdout.startswith("ok")


def test_a_certificate_is_told_from_a_broken_network(judges: Judges) -> None:
    with judge_server(tls=True) as server:
        arguments = ("check", "openai", f"judge.model={MODEL}", f"judge.base_url={server.openai}")
        done = judges(*arguments, OPENAI_API_KEY=KEY)
    assert done.returncode == 2
    assert "certificate not trusted" in done.stderr
    assert "name the issuer's certificate in judge.ca_bundle_file" in done.stderr


def test_each_judge_of_a_panel_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("GEMINI_API_KEY", "GOOGLE_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    done = CliRunner().invoke(commands, ["judges", "check", "panel", "judge.judges=[gemini,openai]"])
    assert done.stderr.startswith("lorahydra: judge gemini needs a key")
    assert str(done.exception).startswith("judge openai needs a key")


def test_an_unknown_judge(judges: Judges) -> None:
    done = judges("check", "foo")
    assert done.returncode == 2
    assert done.stderr == (
        "lorahydra: LLM judge model not found: 'foo'. Registered: gemini, gemini_legacy, gigachat, local, openai.\n"
    )


def test_a_key_in_the_place_of_its_name_is_not_repeated(judges: Judges) -> None:
    done = judges("check", "openai", "judge.api_key_env=sk-my-secret-99")
    assert done.returncode == 2
    assert "takes the name of an environment variable" in done.stderr
    assert "sk-my-secret-99" not in done.stderr
