"""What a run depends on beside its config: code, packages and machine.

```python
run.text(json.dumps(environment("cpu")), ENVIRONMENT_FILE)
differences(recorded, environment("cpu"))  # → ["torch: 2.12.0 → 2.13.0", …]
```
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["code_changes", "differences", "environment", "git", "own_version", "source_folder"]

GIT_SECONDS = 5
"""Longest wait for Git: a repository may be on a disk that hangs."""
CODE = (":(top)*.py", ":(top)*.yaml", ":(top)*.toml", ":(top)*constraints.txt")
"""Files whose changes are recorded; other files of a user's repository are private."""
CHANGES_LENGTH = 1_000_000
"""Characters of a diff that are kept."""


def own_version() -> str:
    """The version of lorahydra; 0.0.0 for a source tree that was not installed."""
    try:
        return metadata.version("lorahydra")
    except metadata.PackageNotFoundError:
        return "0.0.0"


def environment(device: str) -> dict[str, Any]:
    """What this process runs with, as JSON values, if its model is on a device such as `cpu` or `cuda:0`.

    Returns:
        `code` (commit and digest of what is not committed), `python`, `platform`, `packages` (version by name),
        `hardware` (processor, cores, threads of torch, memory, device) and `cwd`.
    """
    changes = code_changes()
    digest = hashlib.sha256(changes.encode("utf-8", "replace")).hexdigest() if changes else None
    return {
        "code": {"commit": git("rev-parse", "--verify", "--quiet", "HEAD"), "changes": digest},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": dict(_packages()),
        "hardware": _hardware(device),
        "cwd": str(Path.cwd()),
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line for each thing in which two environments differ, code first.

    What a run has not recorded is not compared.
    """
    lines = []
    for group in ("code", "python", "platform", "packages", "hardware"):
        old, new = before.get(group), now.get(group)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            names = sorted({*old, *new}, key=lambda name: (name not in new, str(name).lower()))
            lines += [_difference(f"{group}: {name}", old.get(name), new.get(name)) for name in names]
        elif old is not None:
            lines.append(_difference(group, old, new))
    return [line for line in lines if line]


def code_changes() -> str | None:
    """Changes of code and configs that are not committed, as `git diff` shows them; None if there are none.

    New files are only named.
    """
    changed = git("diff", "--no-color", "--no-ext-diff", "HEAD", "--", *CODE)
    new = git("ls-files", "--others", "--exclude-standard", "--full-name", "--", *CODE)
    text = "\n".join([changed or "", *(f"new file: {name}" for name in (new or "").splitlines())]).strip()
    return text[:CHANGES_LENGTH] or None


def git(*arguments: str) -> str | None:
    """What Git says about the folder of the code; None if it is not a repository, or Git is not installed.

    Git is asked once: a process goes on with the code that it has loaded.
    """
    return _git(source_folder(), arguments)


@functools.cache
def _git(folder: Path, arguments: tuple[str, ...]) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=GIT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def source_folder() -> Path:
    """The folder whose repository holds the code in use.

    That of the script which was started; for an installed command, the checkout that it was installed from, else the
    folder it runs in.
    """
    program = Path(sys.argv[0] if sys.argv and sys.argv[0] not in ("", "-c") else sys.executable)
    if program.suffix == ".py" and "site-packages" not in program.parts:
        return program.absolute().parent
    checkout = Path(__file__).resolve().parents[3]
    return checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()


def _difference(name: str, old: Any, new: Any) -> str:
    if old == new:
        return ""
    return f"{name}: {'not there' if old is None else old} → {'not there' if new is None else new}"


@functools.cache
def _packages() -> tuple[tuple[str, str], ...]:
    versions = {
        distribution.metadata["Name"]: distribution.version
        for distribution in metadata.distributions()
        if distribution.metadata["Name"]
    }
    return tuple(sorted(versions.items(), key=lambda item: item[0].lower()))


def _hardware(device: str) -> dict[str, Any]:
    import psutil
    import torch

    hardware: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "device": device,
    }
    if device.startswith("cuda"):
        hardware |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return hardware


@functools.cache
def _processor() -> str:
    """The processor's name; Python knows only its architecture on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
