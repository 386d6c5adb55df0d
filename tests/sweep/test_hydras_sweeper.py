"""The tests of `hydra-optuna-sweeper` itself, with our sweeper under the name of theirs.

They come with its source distribution, without the programs that they start: those are written here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.slow

TESTS = 93
"""How many there are, in version 1.4.0rc3."""
IN_PLACE = """
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra_plugins.hydra_optuna_sweeper.config import OptunaSweeperConf
from hydra_plugins.lorahydra_sweeper import config  # registers the pruners


@dataclass
class InPlace(OptunaSweeperConf):
    _target_: str = "hydra_plugins.lorahydra_sweeper.sweeper.LorahydraSweeper"
    defaults: list[Any] = field(default_factory=lambda: [{"sampler": "tpe"}, {"pruner": "none"}])
    pruner: Any = None


ConfigStore.instance().store(
    group="hydra/sweeper", name="optuna", node=InPlace, provider="in_place", replace=True
)
"""
PROGRAM = """
import hydra


@hydra.main(config_path="{config}", config_name="config", execution_whitelist={whitelist!r})
def main(cfg):
    if cfg.get("error"):
        raise RuntimeError("cfg.error is True")
    return {value}


{more}

if __name__ == "__main__":
    main()
"""
CONFIGURE = """
def configure(cfg, trial):
    middle, most = trial.params["x"], cfg.max_z_difference_from_x
    trial.suggest_float("z", middle - most, middle + most)
    trial.suggest_float("+w", 0.0, 1.0)
"""
SPHERE = {"x": "range(-5.5, 5.5, step=0.5)", "y": "choice(-5, 0, 5)"}
BINH_AND_KORN = {"x": "range(0, 5, step=0.5)", "y": "range(0, 3, step=0.5)"}
BOTH = ["minimize", "minimize"]


def configuration(params: dict[str, str], sampler: str, values: dict[str, Any], **changed: Any) -> str:
    settings = {"direction": "minimize", "n_trials": 20, "n_jobs": 1, "params": params, **changed}
    defaults = [{"override hydra/sweeper": "optuna"}, {"override hydra/sweeper/sampler": sampler}]
    return yaml.safe_dump({"defaults": defaults, "hydra": {"sweeper": settings}, **values})


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, "utf-8")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The tests of that package, and what they need around them."""
    wanted = f"hydra-optuna-sweeper=={version('hydra-optuna-sweeper')}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary=:all:", "--retries=1", "--timeout=15"]
    got = subprocess.run([*command, "--dest", str(tmp_path), wanted], capture_output=True, text=True, check=False)
    if got.returncode != 0:
        pytest.skip(f"the package index did not give the source of {wanted}")
    [archive] = tmp_path.glob("*.tar.gz")
    root = tmp_path / "plugin"
    with tarfile.open(archive) as source:
        member = next(name for name in source.getnames() if name.endswith("tests/test_optuna_sweeper_plugin.py"))
        suite = source.extractfile(member)
        assert suite is not None
        write(root, {"tests/test_suite.py": suite.read().decode()})
    sphere, several = "cfg.x**2 + cfg.y**2", "(4 * cfg.x**2 + 4 * cfg.y**2, (cfg.x - 5) ** 2 + (cfg.y - 5) ** 2)"
    custom = "cfg.w**2 + cfg.x**2 + cfg.y**2 + cfg.z**2"
    function = "custom-search-space-objective.configure"
    one, many = {"x": 1, "y": 1, "z": 1, "error": False}, {"x": 1, "y": 1}
    grid = {"x": "choice(-1, 1)", "y": "range(-1.0, 1.0, step=1)", "z": "choice('foo', 'bar')"}
    write(
        root,
        {
            "setup.py": "",
            "pytest.ini": "[pytest]",
            "tests/__init__.py": "",
            "tests/conf/test_grid.yaml": configuration(grid, "grid", {**many, "z": "foo"}),
            "tests/conf/test_motpe.yaml": configuration(BINH_AND_KORN, "motpe", many, direction=BOTH),
            "example/sphere.py": PROGRAM.format(config="one", whitelist=None, value=sphere, more=""),
            "example/one/config.yaml": configuration(SPHERE, "tpe", one),
            "example/multi-objective.py": PROGRAM.format(config="two", whitelist=None, value=several, more=""),
            "example/two/config.yaml": configuration(BINH_AND_KORN, "nsgaii", many, direction=BOTH),
            "example/custom-search-space-objective.py": PROGRAM.format(
                config="three", whitelist=function, value=custom, more=CONFIGURE
            ),
            "example/three/config.yaml": configuration(
                SPHERE, "tpe", {**one, "max_z_difference_from_x": 0.5}, custom_search_space=function
            ),
            "in_place/hydra_plugins/in_place/__init__.py": "",
            "in_place/hydra_plugins/in_place/config.py": IN_PLACE,
        },
    )
    return root


def test_the_packages_own_tests(root: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(root / "in_place")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "tests/test_suite.py"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= TESTS
