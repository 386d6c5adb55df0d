"""Check that documentation and pins are true: `python scripts/check_docs.py` (part of `make check`).

Links between pages resolve, docs/configuration.md is what the schema says, every dependency is pinned, python_env.yaml
follows the pins, and configuration keys that the pages show are keys of the schema.
"""

import dataclasses
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import python_env
from config_docs import PAGE, page

from lorahydra.config.schema import ExperimentConfig

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")]


def broken_links() -> Iterator[str]:
    """Relative links to files that are not there."""
    for path in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text("utf-8")):
            if not (path.parent / target).exists():
                yield f"{path.name}: link to {target}, which does not exist"


def stale_configuration() -> Iterator[str]:
    """The page of keys, when the schema says something else."""
    if not PAGE.is_file() or PAGE.read_text("utf-8") != page():
        yield "docs/configuration.md is stale: run python scripts/config_docs.py"


def keys(prefix: str, config: object) -> Iterator[str]:
    """All keys of the configuration, with dots."""
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        yield f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from keys(f"{prefix}{field.name}.", value)


def unknown_keys() -> Iterator[str]:
    """Keys in the pages that the schema does not have."""
    config = ExperimentConfig()
    known = set(keys("", config))
    groups = "|".join(
        field.name for field in dataclasses.fields(config) if dataclasses.is_dataclass(getattr(config, field.name))
    )
    for path in PAGES:
        for key in re.findall(rf"(?<![\w./])((?:{groups})\.[a-z_.]+?)=", path.read_text("utf-8")):
            if key not in known:
                yield f"{path.name}: {key} is no key of the configuration"


def unpinned() -> Iterator[str]:
    """Dependencies without an exact version in constraints.txt."""
    lines = (REPOSITORY / "constraints.txt").read_text("utf-8").splitlines()
    pins = {line.partition("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    for requirement in (entry for group in groups for entry in group):
        name = re.split(r"[\[<>=!~ ]", requirement)[0].lower()
        if name != "lorahydra" and name.replace("_", "-") not in pins:
            yield f"constraints.txt does not pin {name}"


def stale_environment() -> Iterator[str]:
    """The environment of `mlflow run`, when pins or dependencies say something else."""
    if not python_env.FILE.is_file() or python_env.FILE.read_text("utf-8") != python_env.content():
        yield "python_env.yaml is stale: run python scripts/python_env.py"


def main() -> None:
    """Print every fault and exit with 1 when there is one."""
    faults = [*broken_links(), *stale_configuration(), *unknown_keys(), *unpinned(), *stale_environment()]
    for fault in faults:
        print(fault, file=sys.stderr)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
