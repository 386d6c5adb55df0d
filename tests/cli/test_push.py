"""`lorahydra push` with the real huggingface_hub against a hub on loopback that speaks its protocol."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.support.hub_server import TOKEN, Hub, model_hub

from lorahydra.adapters import hub_push
from lorahydra.cli.commands import commands
from lorahydra.errors import ConfigError, LorahydraError, ServiceError

pytestmark = [
    pytest.mark.service,
    # huggingface_hub's upload uses a name of httpx that is deprecated.
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with model_hub() as server:
        yield server


@pytest.fixture
def push(hub: Hub, tiny_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs the command, and returns what it prints; its base model is on the hub unless stated otherwise."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    # Uploads by Xet need the hub's second service; by LFS, its older way, they go to one.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    def run(*arguments: str, base: str = "someone/tiny") -> str:
        command = ["push", str(tiny_adapter), *arguments, *(["--base", base] if base else [])]
        done = CliRunner().invoke(commands, command, standalone_mode=False, catch_exceptions=False)
        assert done.stderr == "", "it is no terminal, so there are no progress bars"
        return done.stdout

    return run


def test_a_private_repository_with_a_card(push: Callable[..., str], hub: Hub, tiny_adapter: Path) -> None:
    said = push("hub:me/mine")
    assert said.startswith(f"{hub.address}/me/mine/commit/")
    assert said.endswith(", private\n")
    assert hub.visibility == {"me/mine": "private"}
    files = hub.files["me/mine"]
    assert sorted(files) == ["README.md", "adapter_config.json", "adapter_model.safetensors", "lorahydra.json"]
    assert files["adapter_model.safetensors"] == (tiny_adapter / "adapter_model.safetensors").read_bytes()
    assert b"base_model: someone/tiny" in files["README.md"]
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "someone/tiny"
    assert not any(str(tiny_adapter.parent).encode() in content for content in files.values())
    assert push("hub:me/mine").endswith(", private\n"), "a second commit"


def test_a_public_repository(push: Callable[..., str], hub: Hub) -> None:
    hub.visibility["me/seen"] = "public"
    with pytest.raises(ConfigError, match="everybody can see it: add --public"):
        push("hub:me/seen")
    assert hub.files == {}
    assert push("hub:me/new", "--public").endswith(", public\n")
    assert hub.visibility["me/new"] == "public"


@pytest.mark.parametrize(
    ("target", "settings", "code", "words"),
    [
        ("hub:me/mine", {"HF_TOKEN": "hf_wrong"}, 2, "does not accept the token: check HF_TOKEN"),
        ("hub:me/mine", {"HF_TOKEN": ""}, 2, "put one with write access into the environment variable HF_TOKEN"),
        ("hub:you/theirs", {}, 2, "may not write to hub:you/theirs"),
        ("hub:me/mine", {"HF_HUB_OFFLINE": True}, 2, "while HF_HUB_OFFLINE is set"),
        ("hub:me/mine", {"ENDPOINT": "http://127.0.0.1:9"}, 3, "http://127.0.0.1:9 cannot be reached"),
        ("hub:me/mine", {"fails": 500}, 3, "fails .*try again"),
        ("hub:me/mine", {"fails": 429}, 3, "try again"),
        ("hub:me/mine", {"HF_TOKEN": "hf_é"}, 2, "letters that no token has"),
        ("hub:me/mine", {"base": "two words"}, 2, "the base model two words is not one of the hub"),
        ("me/mine", {}, 2, "write hub:OWNER/NAME"),
        ("hub:me/a b", {}, 2, "hub:me/a b is not a place on the hub"),
        ("hub:me/mine", {"base": ""}, 2, "is on this machine only: name it on the hub with --base"),
    ],
)
def test_a_mistake_is_one_line(
    push: Callable[..., str],
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    settings: dict[str, Any],
    code: int,
    words: str,
) -> None:
    from huggingface_hub import constants

    if "HF_TOKEN" in settings:
        monkeypatch.setenv("HF_TOKEN", settings["HF_TOKEN"])
    for name in ("HF_HUB_OFFLINE", "ENDPOINT"):
        monkeypatch.setattr(constants, name, settings.get(name, getattr(constants, name)))
    hub.fails = settings.get("fails", 0)
    with pytest.raises(LorahydraError, match=words) as raised:
        push(target, base=settings.get("base", "someone/tiny"))
    assert raised.value.exit_code == code
    assert "\n" not in str(raised.value)
    assert "hf_wrong" not in str(raised.value)
    assert hub.files == hub.visibility == {}


def test_a_hub_that_says_nothing_is_not_waited_for(
    push: Callable[..., str], hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_push, "COMMIT_SECONDS", 0.5)
    hub.is_silent = True
    with pytest.raises(ServiceError, match="cannot be reached or fails .*timed out"):
        push("hub:me/mine")


def test_a_client_that_is_made_anew_does_not_wait_for_ever_either(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import close_session, get_session

    monkeypatch.setattr(hub_push, "COMMIT_SECONDS", 0.5)
    with hub_push._not_waiting_for_ever():
        close_session()  # as huggingface_hub does after a connection has failed
        assert get_session().timeout.read == 0.5
    assert get_session().timeout.read is None
