"""Write python_env.yaml, the environment of `mlflow run`: `python scripts/python_env.py`.

It holds what pyproject.toml asks for, with the versions of constraints.txt; `make check` keeps the three equal.
"""

import re
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
FILE = REPOSITORY / "python_env.yaml"
FOR_TESTS = ("hatchling", "pytest")
"""What the entry point `test` needs of the development tools."""


def content() -> str:
    """The file as it should be."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    chosen = re.findall(r"[\w-]+", extras["all"][0].partition("[")[2])
    wanted = [*project["dependencies"], *(one for extra in chosen for one in extras[extra])]
    wanted += [one for one in extras["dev"] if _name(one) in FOR_TESTS]
    pins = {_name(line): line for line in (REPOSITORY / "constraints.txt").read_text("utf-8").splitlines()}
    lines = [
        "# The environment of `mlflow run`: pyproject.toml with the versions of constraints.txt.",
        "# Made by `python scripts/python_env.py`.",
        f'python: "{project["requires-python"].removeprefix(">=")}"',
        "dependencies:",
        "  - -c constraints.txt",
        *sorted({f"  - {pins[_name(one)]}" for one in wanted}, key=str.lower),
    ]
    return "\n".join(lines) + "\n"


def _name(requirement: str) -> str:
    """Name of the package, as the index compares names."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~ ;#]", requirement, maxsplit=1)[0]).lower()


if __name__ == "__main__":
    FILE.write_text(content(), encoding="utf-8")
