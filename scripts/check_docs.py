"""Check that documentation and pins are true: `python scripts/check_docs.py` (part of `make check`).

Links between pages resolve, docs/configuration.md is what the schema says, every dependency is pinned, python_env.yaml
and the versions that pages and docs/compose.yaml name follow the pins, configuration keys that the pages show are keys
of the schema, and messages that the pages on trouble quote are the program's.
"""

import ast
import dataclasses
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import python_env
import yaml
from config_docs import PAGE, page

from lorahydra.config.schema import ExperimentConfig

REPOSITORY = Path(__file__).resolve().parents[1]
COMPOSE = REPOSITORY / "docs" / "compose.yaml"
PAGES = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")]


def broken_links() -> Iterator[str]:
    """Relative links to files that do not exist."""
    for path in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text("utf-8")):
            if not (path.parent / target).exists():
                yield f"{path.name}: link to {target}, which does not exist"


def stale_configuration() -> Iterator[str]:
    """The page of keys, if the schema says something else."""
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
    allowed = set(keys("", config))
    groups = "|".join(
        field.name for field in dataclasses.fields(config) if dataclasses.is_dataclass(getattr(config, field.name))
    )
    for path in PAGES:
        for key in re.findall(rf"(?<![\w./])((?:{groups})\.[a-z_.]+?)=", path.read_text("utf-8")):
            if key not in allowed:
                yield f"{path.name}: {key} is not a key of the configuration"


def unpinned() -> Iterator[str]:
    """Dependencies without an exact version in constraints.txt."""
    pinned = pins()
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    for requirement in (entry for group in groups for entry in group):
        name = re.split(r"[\[<>=!~ ]", requirement)[0].lower()
        if name != "lorahydra" and name.replace("_", "-") not in pinned:
            yield f"constraints.txt does not pin {name}"


def pins() -> dict[str, str]:
    """Versions in constraints.txt, by the name as the index compares names."""
    lines = (REPOSITORY / "constraints.txt").read_text("utf-8").splitlines()
    pairs = (line.split("==") for line in lines if "==" in line)
    return {name.lower().replace("_", "-"): version for name, version in pairs}


def stale_versions() -> Iterator[str]:
    """Versions in pages and the compose file that differ from those in constraints.txt."""
    tested = pins()
    for path in (*PAGES, COMPOSE):
        for name, version in re.findall(r"([\w-]+)(?:\[\w+\])?==(\d[\w.]*\w)", path.read_text("utf-8")):
            if version != tested.get(name.lower().replace("_", "-")):
                yield f"{path.name}: {name}=={version} is not the version in constraints.txt"


def faulty_compose() -> Iterator[str]:
    """Services of the compose file that are open to others, unwatched or forgetful."""
    file = yaml.safe_load(COMPOSE.read_text("utf-8"))
    if set(file["services"]) != {"postgres", "mlflow"} or "mlflow==" not in str(file["services"]["mlflow"]["build"]):
        yield f"{COMPOSE.name}: not the two services of docs/server.md"
    for name, service in file["services"].items():
        if not all(port.startswith("127.0.0.1:") for port in service["ports"]):
            yield f"{COMPOSE.name}: {name} is open to other machines"
        if "healthcheck" not in service:
            yield f"{COMPOSE.name}: {name} has no healthcheck"
        if not {volume.partition(":")[0] for volume in service["volumes"]} <= set(file["volumes"]):
            yield f"{COMPOSE.name}: {name} uses a volume that is not declared"


def stale_environment() -> Iterator[str]:
    """The environment of `mlflow run`, if pins or dependencies say something else."""
    if not python_env.FILE.is_file() or python_env.FILE.read_text("utf-8") != python_env.content():
        yield "python_env.yaml is stale: run python scripts/python_env.py"


def unknown_messages() -> Iterator[str]:
    """Messages that the pages on trouble quote but the program does not have; `…` stands for values there."""
    said = "\0".join(literal for file in (REPOSITORY / "src").rglob("*.py") for literal in literals(file))
    said += "\0".join(literals(REPOSITORY / "scripts" / "check_python.py"))
    for path in (REPOSITORY / "docs").glob("troubleshooting*.md"):
        for message in re.findall(r"^\| `([^`]+)`[^|]* \|", path.read_text("utf-8"), re.MULTILINE):
            for part in message.split("…"):
                if part.strip(" .:;,()'=") not in said:
                    yield f"{path.name}: no message has '{part}' of: {message}"


def literals(file: Path) -> Iterator[str]:
    """The texts in a Python file, and the pieces between the values of its f-strings."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"%[a-z]|%[.\d]+[a-z]", "\0", node.value)


def main() -> None:
    """Print every fault and exit with 1 if there is one."""
    checks = (
        broken_links,
        stale_configuration,
        unknown_keys,
        unpinned,
        stale_environment,
        stale_versions,
        faulty_compose,
        unknown_messages,
    )
    faults = [fault for check in checks for fault in check()]
    for fault in faults:
        print(fault, file=sys.stderr)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
