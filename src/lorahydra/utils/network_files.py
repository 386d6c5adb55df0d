"""Whether a file is on a network file system, where locks of several machines cannot be relied on."""

from __future__ import annotations

from pathlib import Path

__all__ = ["network_file_system"]

KINDS = {
    *("nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "afs", "ceph", "lustre", "gpfs", "beegfs", "glusterfs", "panfs"),
    *("wekafs", "orangefs", "pvfs2", "fuse.ceph", "fuse.glusterfs", "fuse.sshfs", "fuse.beegfs", "fuse.s3fs"),
}
MOUNTS = Path("/proc/self/mounts")


def network_file_system(path: Path, mounts: Path = MOUNTS) -> str | None:
    """The kind of the network file system on which an absolute path is or would be; None for a local disk.

    Args:
        path: It need not exist.
        mounts: The list of what is mounted; without it (as on macOS) nothing is known.
    """
    try:
        lines = mounts.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return None
    there = path.resolve()
    longest, kind = -1, None
    for line in lines:
        _, folder, name, *_ = line.split(" ")
        # Spaces and the like are octal numbers.
        mounted = Path(folder.encode("latin-1", errors="replace").decode("unicode_escape"))
        if there.is_relative_to(mounted) and len(mounted.parts) >= longest:
            longest, kind = len(mounted.parts), name
    return kind if kind in KINDS else None
