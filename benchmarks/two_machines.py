"""Do two machines survive a cut network? One study, and one of its machines is unreachable for two minutes.

python benchmarks/two_machines.py
python benchmarks/two_machines.py --seconds 20 --moment 0

The machines are network namespaces with host names and process numbers of their own, so this needs root, Linux,
`ip` (Debian's iproute2) and PostgreSQL. Each runs the same command in a folder of its own; the database of the study
and the MLflow server are on a third. The cable of one is pulled while it trains a trial. It ends with 1 unless exactly
n_trials finished, all different, every run is closed, no value was recorded twice, and there is one parent and one
winner.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from tests.conftest import make_tiny_model  # noqa: E402
from tests.postgres import execute, program  # noqa: E402
from tests.support.waiting import holds  # noqa: E402

from lorahydra.names import State  # noqa: E402
from lorahydra.sweep.catalog import find_study  # noqa: E402

STUDY, N_TRIALS = "apart", 16
NAMES = ("one", "two")
NETWORKS = {name: f"10.231.{number}" for number, name in enumerate(NAMES)}
"""The first three numbers of the addresses of each machine (.2) and of the third machine as it sees it (.1)."""
PORTS = {"postgresql": 15432, "mlflow": 15000}
PATIENCE = 900.0
"""Seconds that the study may take after the cable is back."""


def main() -> int:
    """Run the study and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120, help="how long one machine is cut off")
    parser.add_argument("--moment", type=float, default=3, help="seconds between the begin of its trial and that")
    parser.add_argument("--steps", type=int, default=300, help="of each trial, which make it longer")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="machines", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        make_tiny_model(folder / "tiny")
        rows = [json.dumps({"question": f"What is {n}+{n}?", "answer": f"It is {2 * n}."}) for n in range(40)]
        (folder / "rows.jsonl").write_text("\n".join(rows), "utf-8")
        with machines(), stores(folder):
            workers = {name: start(name, folder, options.steps) for name in NAMES}
            try:
                lost, seconds = cut(workers, options)
                codes = {name: worker.poll() for name, worker in workers.items()}  # None: it still runs
            finally:
                for worker in workers.values():
                    worker.kill()
            faults = check(folder, codes, lost)
            if faults:
                for name in NAMES:
                    print(f"--- machine {name}\n{(folder / name / 'log.txt').read_text()[-3000:]}")
            print(f"cut off for {options.seconds:.0f} s; ended {seconds:.0f} s after it was back: {faults or 'ok'}")
    return int(bool(faults))


@contextlib.contextmanager
def machines() -> Iterator[None]:
    """The two namespaces, each with a cable to this machine."""
    try:
        for name, network in NETWORKS.items():
            for command in (
                f"ip netns add lorahydra-{name}",
                f"ip link add lh-{name} type veth peer name eth0 netns lorahydra-{name}",
                f"ip addr add {network}.1/24 dev lh-{name}",
                f"ip link set lh-{name} up",
                f"ip -n lorahydra-{name} addr add {network}.2/24 dev eth0",
                f"ip -n lorahydra-{name} link set eth0 up",
                f"ip -n lorahydra-{name} link set lo up",
            ):
                subprocess.run(command.split(), check=True)
        yield
    finally:
        for name in NAMES:
            subprocess.run(["ip", "netns", "del", f"lorahydra-{name}"], check=False)


@contextlib.contextmanager
def stores(folder: Path) -> Iterator[None]:
    """PostgreSQL and an MLflow server on this machine, which both others reach."""
    initdb, postgres = program("initdb"), program("postgres")
    if initdb is None or postgres is None:
        sys.exit("PostgreSQL is not installed (apt-get install postgresql)")
    data = folder / "postgresql"
    data.mkdir()
    shutil.chown(data, "nobody")
    user: dict[str, Any] = {"user": "nobody", "cwd": data}
    initialise = [initdb, "-D", data / "data", "--username=lora", "--auth=trust"]
    subprocess.run(initialise, check=True, stdout=subprocess.DEVNULL, **user)
    with (data / "data" / "pg_hba.conf").open("a") as allowed:
        allowed.writelines(f"host all all {network}.0/24 trust\n" for network in NETWORKS.values())
    listen = ["-c", "listen_addresses=*", "-c", f"port={PORTS['postgresql']}", "-c", f"unix_socket_directories={data}"]
    started = [subprocess.Popen([postgres, "-D", data / "data", *listen], stderr=subprocess.DEVNULL, **user)]
    try:
        for database in ("studies", "mlflow"):
            holds(lambda database=database: _created(database), 60)
        mlflow = [sys.executable, "-m", "mlflow", "server", "--host=0.0.0.0", f"--port={PORTS['mlflow']}"]
        mlflow += [f"--backend-store-uri={here('mlflow')}", f"--artifacts-destination={folder / 'artifacts'}"]
        with (folder / "mlflow.txt").open("wb") as log:
            server = subprocess.Popen([*mlflow, "--workers=1"], stdout=log, stderr=log, start_new_session=True)
        started.append(server)
        holds(lambda: _answers(f"http://127.0.0.1:{PORTS['mlflow']}/health"), 120)
        yield
    finally:
        for process in reversed(started):
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if process.args[0] == sys.executable else os.kill)(process.pid, signal.SIGINT)
            process.wait()


def here(database: str) -> str:
    """Address of a database on this machine."""
    return f"postgresql+psycopg2://lora@127.0.0.1:{PORTS['postgresql']}/{database}"


def start(name: str, folder: Path, steps: int) -> subprocess.Popen[bytes]:
    """Run the study on one of the machines."""
    place, host = folder / name, f"{NETWORKS[name]}.1"
    place.mkdir()
    words = [
        *("-m", f"study={STUDY}", f"hydra.sweeper.n_trials={N_TRIALS}", "tracking.system_metrics=false"),
        f'hydra.sweeper.storage="postgresql://lora@{host}:{PORTS["postgresql"]}/studies"',
        f"tracking.uri=http://{host}:{PORTS['mlflow']}",
        *("model=local", f"model.name_or_path={folder / 'tiny'}", "model.device=cpu", f"training.max_steps={steps}"),
        *("evaluation=minilm", "evaluation.max_new_tokens=6", "data=local", f"data.train_file={folder / 'rows.jsonl'}"),
        *("training.learning_rate=tag(log, interval(1e-4, 1e-1))", "lora.r=choice(2, 4, 8)"),
        "hydra/sweeper/pruner=none",
    ]
    inside = ["unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c"]
    inside += ['hostname "$0"; exec "$@"', f"machine-{name}", sys.executable, str(REPOSITORY / "train.py"), *words]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with (place / "log.txt").open("wb") as log:
        return subprocess.Popen(
            ["ip", "netns", "exec", f"lorahydra-{name}", *inside], cwd=place, stdout=log, stderr=log, env=environment
        )


def cut(workers: dict[str, subprocess.Popen[bytes]], options: argparse.Namespace) -> tuple[list[int], float]:
    """Pull the cable of a machine while it has a trial; the trials that it had, and how long the study then took."""
    holds(lambda: {machine for machine, _ in running()} == {f"machine-{name}" for name in NAMES}, 300)
    time.sleep(options.moment)
    lost = [number for machine, number in running() if machine == "machine-two"]
    subprocess.run(["ip", "link", "set", "lh-two", "down"], check=True)
    print(f"machine two is cut off with trial {lost}; {finished()} of {N_TRIALS} finished", flush=True)
    time.sleep(options.seconds)
    subprocess.run(["ip", "link", "set", "lh-two", "up"], check=True)
    print(f"it is back; {finished()} of {N_TRIALS} finished", flush=True)
    back = time.monotonic()
    holds(lambda: all(worker.poll() is not None for worker in workers.values()), PATIENCE)
    return lost, time.monotonic() - back


def running() -> list[tuple[str, int]]:
    """Machine and number of the trials that run."""
    query = (
        "SELECT value_json, number FROM trial_user_attributes JOIN trials USING (trial_id) "
        "WHERE state = 'RUNNING' AND key = 'lorahydra'"
    )
    with contextlib.suppress(sqlalchemy.exc.SQLAlchemyError):
        rows = asked("studies", query)
        return [(json.loads(value).get("worker", {}).get("host", ""), number) for value, number in rows]
    return []


def finished() -> int:
    """The number of trials that have finished."""
    [(count,)] = asked("studies", "SELECT COUNT(*) FROM trials WHERE state = 'COMPLETE'")
    return int(count)


def asked(database: str, query: str) -> list[Any]:
    """Rows of a database."""
    engine = sqlalchemy.create_engine(here(database), poolclass=sqlalchemy.pool.NullPool)
    with engine.connect() as connection:
        return list(connection.exec_driver_sql(query))


def check(folder: Path, codes: dict[str, int | None], lost: list[int]) -> list[str]:
    """What is lost or double."""
    faults = [f"machine {name} ended with {code}" for name, code in codes.items() if code != 0]
    entry = find_study(STUDY, here("studies"))
    counted = [trial for trial in entry.trials if trial.counts]
    if (entry.state, len(counted)) != (State.COMPLETE, N_TRIALS):
        faults.append(f"the study is {entry.state} with {len(counted)} trials")
    if len({json.dumps(dict(trial.params), sort_keys=True) for trial in counted}) != len(counted):
        faults.append("trials with the same parameters")
    faults += [f"trial {trial.number} is still open" for trial in entry.trials if trial.state is State.RUNNING]
    tags = "SELECT run_uuid, key, value FROM tags WHERE key LIKE 'lorahydra.%%'"
    runs: dict[str, dict[str, str]] = {}
    for run, key, value in asked("mlflow", tags):
        runs.setdefault(run, {})[key] = value
    kinds = Counter((run["lorahydra.kind"], run["lorahydra.state"]) for run in runs.values())
    print(
        f"runs in MLflow: {dict(kinds)}; trials: {Counter(str(trial.state) for trial in entry.trials)}; cut off: {lost}"
    )
    if kinds["trial", "complete"] != N_TRIALS or kinds["study", "complete"] != 1:
        faults.append("a run is missing or double")
    faults += [
        f"{count} runs of kind {kind} are still running" for (kind, state), count in kinds.items() if state == "running"
    ]
    faults += [
        f"a run has status {status}"
        for (status,) in asked("mlflow", "SELECT status FROM runs WHERE status = 'RUNNING'")
    ]
    twice = "SELECT run_uuid, key, step FROM metrics WHERE key LIKE 'train/%%' GROUP BY 1, 2, 3 HAVING COUNT(*) > 1"
    faults += [f"run {run} has two values of {key} at step {step}" for run, key, step in asked("mlflow", twice)]
    versions = asked("mlflow", "SELECT name, version FROM model_versions")
    if versions != [(f"lorahydra-{STUDY}", 1)]:
        faults.append(f"registered models: {versions}")
    return faults


def _created(database: str) -> bool:
    try:
        execute(here("postgres"), f"CREATE DATABASE {database}")
    except sqlalchemy.exc.OperationalError:
        return False
    return True


def _answers(address: str) -> bool:
    try:
        return bool(urllib.request.urlopen(address, timeout=5).status == 200)
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
