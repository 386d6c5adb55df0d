"""Debian's Slurm for tests: a cluster of this machine alone, on loopback, with its own key, ports and folders."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.ports import free_port
from tests.support.waiting import holds

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
SLOTS = 4
"""Jobs at once, however many cores there are."""


@pytest.fixture(scope="session")
def slurm() -> Iterator[dict[str, str]]:
    """The variables with which Slurm's commands find the cluster."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if missing or os.getuid() != 0:
        pytest.skip("a Slurm needs root and its programs (apt-get install slurm-wlm munge)")
    with tempfile.TemporaryDirectory(prefix="slurm", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        key, munge = folder / "munge.key", folder / "munge.socket"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        config = folder / "slurm.conf"
        config.write_text(_config(folder, munge))
        environment = os.environ | {"PATH": PATH, "SLURM_CONF": str(config)}
        files = [f"--{kind}-file={folder}/munge.{kind}" for kind in ("log", "pid", "seed")]
        started = [
            subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            for command, log in (
                (
                    ["munged", "--foreground", "--force", f"--socket={munge}", f"--key-file={key}", *files],
                    _log(folder, "m"),
                ),
                (["slurmctld", "-D"], _log(folder, "slurmctld")),
                (["slurmd", "-D", "-N", "one"], _log(folder, "slurmd")),
            )
        ]
        try:
            assert holds(lambda: _is_idle(environment)), [log.read_text() for log in folder.glob("*.out")]
            yield {"PATH": PATH, "SLURM_CONF": str(config)}
        finally:
            subprocess.run(
                ["scancel", "--user=root", "--signal=KILL"], env=environment, check=False, capture_output=True
            )
            for process in reversed(started):
                process.terminate()
                process.wait()


def _log(folder: Path, name: str) -> int:
    return os.open(folder / f"{name}.out", os.O_CREAT | os.O_WRONLY)


def _is_idle(environment: dict[str, str]) -> bool:
    asked = subprocess.run(["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True, check=False)
    return asked.stdout.strip() == "idle"


def _config(folder: Path, munge: Path) -> str:
    controller, node = free_port(), free_port()
    return f"""
ClusterName=tests
SlurmctldHost={socket.gethostname()}(127.0.0.1)
SlurmUser=root
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/munge
AuthInfo=socket={munge},cred_expire=5
CredType=cred/munge
CommunicationParameters=NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=5
JobRequeue=1
NodeName=one NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port={node} CPUs={SLOTS} State=UNKNOWN
PartitionName=tests Nodes=one Default=YES MaxTime=INFINITE State=UP
"""
