"""The cache folder, atomic writes and locks between processes."""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lorahydra.errors import LorahydraError, OutputError
from lorahydra.utils.network_files import network_file_system

__all__ = [
    "DATA_CACHE",
    "atomic_dir",
    "atomic_file",
    "cache_dir",
    "check_new",
    "data_cache_dir",
    "locked",
    "remove",
    "replaced_dir",
    "size_of",
    "writing",
]

DATA_CACHE = "LORAHYDRA_DATA_CACHE"
"""Environment variable: the folder of `data_cache_dir`."""


def cache_dir() -> Path:
    """Folder for what can be made again: `LORAHYDRA_CACHE`, else `lorahydra` in `XDG_CACHE_HOME` or `~/.cache`."""
    if explicit := os.environ.get("LORAHYDRA_CACHE"):
        return Path(explicit).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lorahydra"


def data_cache_dir() -> Path:
    """Folder for cached rows, tokens and verdicts, which hold users' data: `LORAHYDRA_DATA_CACHE`, else `cache_dir`."""
    explicit = os.environ.get(DATA_CACHE)
    return Path(explicit).expanduser() if explicit else cache_dir()


REASONS = {
    errno.EIO: "the disk has an input/output error",
    errno.ENOSPC: "the disk is full",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EFBIG: "the file is too large for this file system",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "no permission to write",
    errno.EPERM: "no permission to write",
    errno.EROFS: "the file system is read-only",
    errno.EEXIST: "a file exists where a folder is needed",
    errno.EISDIR: "a folder exists where a file is needed",
    errno.ENOTDIR: "a part of the path is a file",
}


DISK = (errno.EIO, errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS)
"""Faults of the disk itself."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the disk while `path` is written into one clear line.

    Raises:
        OutputError: Instead of an `OSError` of a kind in `REASONS` inside the block, or of what a library makes of a
            fault of the disk; others pass.
    """
    try:
        yield
    except LorahydraError:
        raise
    except Exception as error:
        reason = _reason(error, REASONS) if isinstance(error, OSError) else _reason_below(error)
        if reason is None:
            raise
        raise OutputError(f"cannot write to {path}: {reason}") from error


def _reason(error: OSError, among: Collection[int]) -> str | None:
    """Why something could not be written; `shutil.Error`, of a folder's copy, has texts and no error number."""
    texts = str(error) if isinstance(error, shutil.Error) else ""
    return next((REASONS[n] for n in among if n == error.errno or f"[Errno {n}]" in texts), None)


def _reason_below(error: BaseException) -> str | None:
    """The fault of the disk from which another error arose."""
    cause = error.__cause__ or error.__context__
    if cause is None:
        return None
    return _reason(cause, DISK) if isinstance(cause, OSError) else _reason_below(cause)


def check_new(folder: Path) -> None:
    """Check that `atomic_dir` can make `folder`: it does not exist, or is empty."""
    with writing(folder):
        if folder.is_dir() and any(folder.iterdir()):
            raise OutputError(f"the folder {folder} is not empty: choose a new one, or remove it")
        if folder.is_mount():
            raise OutputError(f"{folder} is a mounted disk, which cannot be replaced: choose a folder in it")
        if (folder.exists() or folder.is_symlink()) and not folder.is_dir():
            raise OutputError(f"{folder} is not a folder: choose another name")


def remove(path: Path) -> None:
    """Remove a file, or a folder with all it holds; what symbolic links point to stays.

    Does nothing if there is nothing.

    Raises:
        OutputError: It cannot be removed.
    """
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot remove {path}: {error.strerror or error}") from error


def size_of(path: Path) -> int:
    """Size in bytes of a file, or of all files in a folder; symbolic links and what cannot be read count as nothing."""
    if path.is_symlink():
        return 0
    total = 0
    with suppress(OSError):
        if path.is_file():
            return path.stat().st_size
        with os.scandir(path) as entries:
            total = sum(size_of(Path(entry.path)) for entry in entries)
    return total


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside `path`, moved onto it when the block ends well and removed when it does not."""
    with writing(path):
        temporary = _beside(path)
        temporary.touch()
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, renamed to it when the block ends well and removed when it does not.

    Those of processes that were killed are removed before. A folder that another process put at `path` meanwhile stays,
    and this one is dropped.
    """
    _remove_remains(path)
    with _temporary_dir(path) as temporary:
        yield temporary
        _readable(temporary)
        try:
            temporary.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


@contextmanager
def replaced_dir(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that replaces it, with all it holds, when the block ends well."""
    with _temporary_dir(path) as temporary, _temporary_dir(path) as old:
        yield temporary
        _readable(temporary)
        if path.exists():
            path.rename(old / path.name)
        temporary.rename(path)
    _remove_remains(path)  # only now, because a process that was killed in between has left the old folder in one


@contextmanager
def _temporary_dir(path: Path) -> Iterator[Path]:
    with writing(path):
        temporary, owner = _owned_dir(path)
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            _disown(owner)


def _owned_dir(path: Path) -> tuple[Path, int | None]:
    """A new folder beside `path`, and what `_owner` gives for it."""
    while True:
        folder = _beside(path)
        folder.mkdir()
        owner = _owner(folder, wait=True)
        if folder.exists():
            return folder, owner
        _disown(owner)  # another process took it for remains before it had an owner


def _remove_remains(path: Path) -> None:
    """Remove the temporary folders of `path` whose owners were killed."""
    name = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}")
    try:
        remains = [folder for folder in path.parent.iterdir() if name.fullmatch(folder.name)]
    except OSError:
        return
    # On a network disk, the owner may be on another machine.
    if not remains or network_file_system(path.parent.absolute()) is not None:
        return
    for folder in remains:
        if folder.is_dir() and not folder.is_symlink() and (owner := _owner(folder, wait=False)) is not None:
            shutil.rmtree(folder, ignore_errors=True)
            _disown(owner)


def _owner(folder: Path, *, wait: bool) -> int | None:
    """A descriptor that locks a folder until it is closed or the process dies; None if that is not possible."""
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _disown(owner: int | None) -> None:
    if owner is not None:
        os.close(owner)


def _beside(path: Path) -> Path:
    """A new name in the folder of `path`, which is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")


def _readable(folder: Path) -> None:
    """Give all in a new folder the permissions that newly made files and folders have, as the folder itself has.

    safetensors makes files that only the user can read, which is wrong for a cache or an adapter that others use.
    """
    mode = folder.stat().st_mode & 0o777
    for entry in folder.rglob("*"):
        entry.chmod(mode if entry.is_dir() else mode & 0o666)


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock between processes, named after `path`; a crash of the holder frees it.

    Raises:
        TimeoutError: Another process holds it and `wait` is false.
    """
    from filelock import FileLock

    lock = FileLock(path.parent / f".{path.name}.lock", thread_local=False)
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=-1 if wait else 0)
        yield
    finally:
        # Also after an interrupt inside `acquire`: the same process may need the lock again to clean up.
        lock.release(force=True)
