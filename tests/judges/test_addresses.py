"""Where keys go: with two judges set up in any way, each key arrives at its own address only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.judges.wire import MODEL, JudgeServer, judge_server
from tests.support.configs import judge_config

from lorahydra.config.compose import compose, config_dir, hydra_overrides
from lorahydra.config.judge import JudgeConfig
from lorahydra.errors import ConfigError
from lorahydra.judges import loading
from lorahydra.judges.loading import ready_session
from lorahydra.service.choices import Choices, composed
from lorahydra.service.planning import demo_data, overrides_of, settled
from lorahydra.service.views import FineTuneParams

KEYS = {"gemini": "key-of-gemini-41d0", "openai": "key-of-openai-77ce"}
MODELS = tuple(f"judges.{name}.model={MODEL}" for name in KEYS)


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, JudgeServer]]:
    """A server for each of two judges, whose keys are in their usual variables."""
    for name, key in KEYS.items():
        monkeypatch.setenv(f"{name.upper()}_API_KEY", key)
    with judge_server() as gemini, judge_server() as openai:
        made = {"gemini": gemini, "openai": openai}
        for name, server in made.items():
            server.key = KEYS[name]
        yield made
        loading.close_session()


def address(name: str, servers: dict[str, JudgeServer]) -> str:
    return str(getattr(servers[name], name))


def by_environment(name: str, servers: dict[str, JudgeServer], _: Path, patch: pytest.MonkeyPatch) -> JudgeConfig:
    patch.setenv("GOOGLE_GEMINI_BASE_URL", servers["gemini"].gemini)
    return judge_config(name, *MODELS, f"judges.openai.base_url={servers['openai'].openai}")


def by_own_defaults(name: str, servers: dict[str, JudgeServer], place: Path, _: pytest.MonkeyPatch) -> JudgeConfig:
    folder = with_own_defaults(
        place, "judges:\n" + "".join(f"  {one}: {{base_url: {address(one, servers)}}}\n" for one in KEYS)
    )
    return compose([f"judge={name}", *MODELS], folder=folder).judge


def by_name(name: str, servers: dict[str, JudgeServer], place: Path, _: pytest.MonkeyPatch) -> JudgeConfig:
    """As `lorahydra serve --set` gives them, and a request to the API chooses one of them."""
    choices = Choices(place, (*MODELS, *(f"judges.{one}.base_url={address(one, servers)}" for one in KEYS)))
    asked = settled(FineTuneParams(True, name, None, 5), choices)
    return composed(overrides_of(asked, choices, demo_data())).judge


def by_command_line(name: str, servers: dict[str, JudgeServer], _: Path, __: pytest.MonkeyPatch) -> JudgeConfig:
    return judge_config(name, f"judge.model={MODEL}", f"judge.base_url={address(name, servers)}")


def by_the_judge_beside_it(
    name: str, servers: dict[str, JudgeServer], place: Path, _: pytest.MonkeyPatch
) -> JudgeConfig:
    """As `lorahydra serve --set judge=openai --set judge.base_url=…`; the other judge has its address by name."""
    own = (
        f"judges.gemini.base_url={address('gemini', servers)}",
        "judge=openai",
        f"judge.base_url={address('openai', servers)}",
    )
    return Choices(place, (*MODELS, *own)).judge_config(name)


def with_own_defaults(place: Path, content: str) -> Path:
    """The shipped configs with a `local/default.yaml`."""
    folder = place / "conf"
    folder.mkdir()
    for file in config_dir().iterdir():
        if file.name != "local":
            (folder / file.name).symlink_to(file)
    (folder / "local").mkdir()
    (folder / "local" / "default.yaml").write_text(f"# @package _global_\n{content}")
    return folder


@pytest.mark.parametrize("way", [by_environment, by_own_defaults, by_name, by_command_line, by_the_judge_beside_it])
def test_a_key_goes_only_to_the_address_of_its_judge(
    way: Callable[..., JudgeConfig], servers: dict[str, JudgeServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, server in servers.items():
        place = tmp_path / name
        place.mkdir()
        session = ready_session(way(name, servers, place, monkeypatch))
        assert session is not None
        assert server.self_tests, "it was asked"
    for name, server in servers.items():
        assert {request.service for request in (*server.self_tests, *server.requests)} == {name}
        sent = str([request.headers for request in (*server.self_tests, *server.requests)])
        assert [other for other, key in KEYS.items() if key in sent] == [name]


@pytest.mark.parametrize(
    ("content", "overrides", "refused"),
    [
        ("judge: {base_url: http://h/v1}", ("judge=gemini",), "would hold for judge=gemini"),
        ("judge: {base_url: http://h/v1}", (), "would hold for any judge"),
        ("judge: {api_key_env: MINE}", ("judge=openai",), "give judges.NAME.api_key_env"),
        ("defaults: [override /judge: openai]\njudge: {base_url: http://h/v1}", ("judge=gemini",), "judge=gemini"),
        ("defaults: [override /judge: openai]\njudge: {base_url: http://h/v1}", (), None),
        ("judge: {base_url: http://h/v1}", ("judge=none",), None),
        ("judge: {timeout: 5}", ("judge=gemini",), None),
        ("judge: 5\n- [", ("judge=gemini",), r"default.yaml cannot be read as YAML \(line 3: "),
    ],
)
def test_own_defaults_say_for_which_judge_an_address_is(
    content: str, overrides: tuple[str, ...], refused: str | None, tmp_path: Path
) -> None:
    folder = with_own_defaults(tmp_path, content)
    arguments = [*overrides, "--config-dir", str(folder)]  # as the command line has it
    for call in (lambda: hydra_overrides(arguments), lambda: compose(overrides, folder=folder)):
        if refused is None:
            call()
            continue
        with pytest.raises(ConfigError, match=refused):
            call()


def test_an_experiment_keeps_its_address_for_its_judge(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "defaults: [override /judge: openai]\njudge: {base_url: http://h/v1}"
    )
    arguments = ["experiment=mine", f"--config-dir={tmp_path}"]
    assert hydra_overrides([*arguments, "judge=openai"])
    with pytest.raises(ConfigError, match=r"mine.yaml: judge.base_url would hold for judge=gemini"):
        hydra_overrides([*arguments, "judge=gemini"])
