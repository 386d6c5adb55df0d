"""Write docs/configuration.md from the schema's docstrings: `python scripts/config_docs.py`."""

import ast
import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCES = [
    REPOSITORY / "src" / "lorahydra" / "config" / name
    for name in ("schema.py", "training.py", "data.py", "judge.py", "search.py")
]
PAGE = REPOSITORY / "docs" / "configuration.md"

GROUPS = {
    "ExperimentConfig": "",
    "ModelConfig": "model",
    "LoraConfig": "lora",
    "JudgeConfig": "judge",
    "RubricConfig": "judge.rubric",
    "CriterionConfig": "judge.rubric.criteria.NAME",
    "TrainingConfig": "training",
    "DataConfig": "data",
    "ColumnsConfig": "data.columns",
    "ReplayConfig": "data.replay",
    "EvaluationConfig": "evaluation",
    "TrackingConfig": "tracking",
    "SearchConfig": "search",
}

HEAD = """# Configuration

Every key with its type, its default in the schema, and what it does. `scripts/config_docs.py` writes this page from the
docstrings in `src/lorahydra/config`. Files in `conf/` may choose other values than the schema's defaults.

## Your own defaults

A file `conf/local/default.yaml` is read after all other choices and before `experiment=…` and the command line. Git
ignores it. With an installed `lorahydra`, keep it anywhere as `FOLDER/local/default.yaml` and give
`--config-dir FOLDER`. An address or key variable of a judge belongs under `judges.NAME` there, so that no key reaches
another service.

```yaml
# @package _global_
model:
  name_or_path: Qwen/Qwen3-1.7B
tracking:
  uri: http://mlflow.example.com:5000
```
"""


def fields(node: ast.ClassDef) -> list[tuple[str, str, str, str]]:
    """Name, type, default and docstring of each field of a dataclass."""
    described = []
    for statement, following in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(statement, ast.AnnAssign):
            continue
        text = following.value.value if isinstance(following, ast.Expr) else ""
        if not text:
            continue
        default = ast.unparse(statement.value) if statement.value else ""
        name = ast.unparse(statement.target)
        described.append((name, ast.unparse(statement.annotation), default, " ".join(text.split())))
    return described


def shown_type(kind: str) -> str:
    """A type, with its choices as they are written in a config."""
    choices = re.sub(r"Literal\[(.*?)\]", lambda match: re.sub(r"'?([^', ]+)'?", r"`\1`", match[1]), kind)
    return choices.replace("` | `", "`, `").replace("|", "or")


def page() -> str:
    """The whole page."""
    statements = [node for source in SOURCES for node in ast.parse(source.read_text("utf-8")).body]
    classes = {node.name: node for node in statements if isinstance(node, ast.ClassDef)}
    aliases = {ast.unparse(node.targets[0]): ast.unparse(node.value) for node in statements if type(node) is ast.Assign}
    parts = [HEAD]
    for name, group in GROUPS.items():
        title = f"`{group}`" if group else "Top level"
        summary = ast.get_docstring(classes[name]) or ""
        parts.append(f"## {title}\n\n{summary.splitlines()[0]}\n\n| key | type | default | |\n|---|---|---|---|")
        bases = [classes[base.id] for base in classes[name].bases if isinstance(base, ast.Name)]
        for field, kind, default, text in [line for node in (*bases, classes[name]) for line in fields(node)]:
            key = f"{group}.{field}" if group else field
            shown = "" if "field(" in default else f"`{default}`"
            parts.append(
                f"| `{key}` | {shown_type(aliases.get(kind, kind))} | {shown} | {text.replace('|', chr(92) + '|')} |"
            )
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
