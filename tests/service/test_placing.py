"""What the server refuses in `--set` and in addresses, in one line each."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lorahydra.cli.serve import serve as command
from lorahydra.errors import ConfigError
from lorahydra.service.placing import check_placing
from lorahydra.service.results import Stores


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("hydra.sweeper.n_jobs=${oc.env:NOPE}", "'NOPE' not found"),
        ("hydra.launcher=null", "takes the keys of hydra.launcher away"),
        ("~hydra/launcher", "takes the keys of hydra.launcher away"),
        ("hydra/launcher=[joblib]", "give --launcher NAME"),
        ("hydra.sweeper={storage: x}", "hydra.sweeper.storage=… has no effect on fine-tunes"),
        ("tracking={uri: x}", "give --tracking-uri instead"),
        ("hydra.sweeper.storage=sqlite:///studies.db", "give --studies instead"),
    ],
)
def test_overrides_that_no_fine_tune_could_use(override: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(reason)) as refused:
        check_placing([override], "sqlite:///service.db", Stores(Path("service"), None))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("option", ["--tracking-uri", "--mlflow-url"])
@pytest.mark.parametrize("address", ["https://s3cret@host", "http://host/mlflow?token=s3cret", "HTTPS://host/#s3cret"])
def test_an_address_that_may_have_a_token(option: str, address: str, tmp_path: Path) -> None:
    folder = tmp_path / "service"
    with pytest.raises(ConfigError, match=f"{option} has a user") as refused:
        command.main(["--folder", str(folder), option, address], standalone_mode=False)
    assert "s3cret" not in str(refused.value)
    assert not folder.exists()
