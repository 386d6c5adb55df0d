"""The wheel works without the source tree: configs, demo data and the command are in it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

CHECK = """
from lorahydra.config.compose import compose, config_dir
from lorahydra.config.schema import DataConfig
from lorahydra.data import load_splits
print(config_dir())
print(compose(["output_dir=out", "experiment=demo"]).model.name_or_path)
print(len(load_splits(DataConfig(train_file="demo"), seed=1).train))
"""


@pytest.mark.slow
def test_an_installed_wheel_has_all_it_needs(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*build, str(REPOSITORY)], check=True)
    [wheel] = tmp_path.glob("lorahydra-*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    environment = os.environ | {"PYTHONPATH": str(installed), "LORAHYDRA_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", CHECK], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(installed / "lorahydra" / "conf"), "smollm2-135m-instruct", "144"]
