"""`train.py` and `lorahydra train` as a new user meets them: one clear line for every mistake, and the exit code."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.models import scored_with
from tests.support.programs import TRAIN, ProgramRunner, environment

from lorahydra import __version__
from lorahydra.cli.hydra_options import hydra_arguments
from lorahydra.errors import ConfigError
from lorahydra.modeling.packaged import fetch

Run = Callable[..., subprocess.CompletedProcess[str]]
ROW = json.dumps({"prompt": "Say hello.", "completion": "Hello!"})


@pytest.fixture
def run(runner: ProgramRunner) -> Run:
    """Runs `train.py` where no model is needed: in a folder, with arguments and variables."""
    return lambda place, *arguments, **variables: runner.run([TRAIN, *arguments], place, environment(**variables))


@pytest.fixture
def run_trial(programs: ProgramRunner) -> Run:
    """Runs `train.py` with everything imported: in a folder, with arguments and variables."""
    return lambda place, *arguments, **variables: programs.run([TRAIN, *arguments], place, environment(**variables))


def assert_one_line(done: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    for part in ("lorahydra: ", *parts):
        assert part in lines[0]
    assert done.returncode == code


def with_rows(place: Path, content: str | bytes, name: str = "rows.jsonl") -> str:
    data = content.encode() if isinstance(content, str) else content
    (place / name).write_bytes(data)
    return f"data.train_file={name}"


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("lora.r=0", ["lora.r=0 is not allowed: it must be at least 1"]),
        ("training.learning_rate=-1", ["training.learning_rate=-1.0 is not allowed"]),
        ("training.learning_rate=fast", ["training.learning_rate=fast is not allowed: give a number"]),
        ("training.lerning_rate=1", ["unknown key training.lerning_rate (did you mean learning_rate?)"]),
        ("lora=lara", ["lora=lara does not exist: choose one of dora, lora, loraplus, pissa, rslora"]),
        ("lora.r=[1", ["lora.r=["]),
        ("lora", ["cannot read 'lora': write KEY=VALUE, such as lora.r=8, or GROUP=CHOICE"]),
        ("study=one", ["study=one names a study, and this is a single trial: add -m"]),
        ("data.train_file=null", ["data.train_file or data.hub_name"]),
    ],
)
def test_a_mistake_in_the_configuration(tmp_path: Path, override: str, parts: list[str], run: Run) -> None:
    assert_one_line(run(tmp_path, "experiment=demo", override), 2, *parts)
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--frobnicate"], "unrecognized arguments: --frobnicate"),
        (["--cfg", "jobs"], "invalid choice: 'jobs'"),
        (["-sc", "install=tcsh"], "install=SHELL with SHELL one of bash, fish, zsh"),
        (["-sc", "query=bash"], "is for shells"),
        (["--experimental-rerun", "nowhere"], "nowhere is not the output folder of a run"),
        (["-m", "hydra.sweeper=null"], "hydra.sweeper=null takes the keys of hydra.sweeper away"),
        (["-m", "+hydra.launcher=joblib"], "choose another by hydra/launcher=NAME"),
        (["-m", "~hydra/launcher"], "takes the keys of hydra.launcher away"),
    ],
)
def test_a_mistake_in_an_option(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        hydra_arguments(arguments)


def test_a_mapping_changes_some_keys() -> None:
    arguments = ["-m", "hydra.sweeper={n_trials: 2}"]
    assert hydra_arguments(arguments) == arguments


def test_help_and_version_are_ours(tmp_path: Path, run: Run) -> None:
    done = run(tmp_path, "--version")
    assert (done.returncode, done.stdout) == (0, f"lorahydra, version {__version__}\n")
    done = run(tmp_path, "--help", LORA_N_TRIALS="many")
    assert done.returncode == 0
    assert "data: demo, hub, local\n" in done.stdout
    assert "hydra.sweeper.n_trials=40" in done.stdout
    assert "docs/troubleshooting.md" in done.stdout
    assert "lora_dropout" not in done.stdout, "a page, and not the whole configuration"
    assert max(map(len, done.stdout.splitlines())) < 100
    assert run(tmp_path, "--hydra-help").stdout.startswith("Hydra (")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["job", "all"])
def test_the_configuration_is_shown_without_secrets(tmp_path: Path, kind: str, run: Run) -> None:
    overrides = ["tracking.uri=postgresql://me:geheim@host/db", "judge=openai", "judge.model=${oc.env:MY_API_KEY}"]
    done = run(tmp_path, "--cfg", kind, "--resolve", *overrides, MY_API_KEY="sk-0123456789")
    assert (done.returncode, done.stderr) == (0, "")
    assert "postgresql://me:***@host/db" in done.stdout
    assert "geheim" not in done.stdout
    assert "sk-0123456789" not in done.stdout
    [folder] = re.findall(r"^output_dir: (.+)", done.stdout, re.MULTILINE)
    assert folder.startswith("outputs/")
    assert not list(tmp_path.iterdir())


def test_a_reader_that_is_gone_ends_it_quietly(tmp_path: Path) -> None:
    command = f"{sys.executable} {TRAIN} --cfg job | true"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_bash_completes_overrides() -> None:
    script = '''
        eval "$(python train.py -sc install=bash)"
        COMP_LINE="python train.py data=" COMP_CWORD=2
        hydra_bash_completion
        echo "${COMPREPLY[*]}"'''
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script], cwd=Path(TRAIN).parent, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["data=demo", "data=hub", "data=local"]


def test_a_variable_of_the_wrong_type(tmp_path: Path, run: Run) -> None:
    done = run(tmp_path, LORA_BATCH_SIZE="four")
    assert_one_line(done, 2, "environment variable LORA_BATCH_SIZE='four' is not a whole number")


def test_a_traceback_on_request(tmp_path: Path, run: Run) -> None:
    done = run(tmp_path, "lora.r=0", HYDRA_FULL_ERROR="1")
    assert done.returncode == 2
    assert "Traceback" in done.stderr


def test_worker_processes_show_tracebacks_only_on_request(tmp_path: Path, run: Run) -> None:
    done = run(tmp_path, "lora.r=0", HYDRA_FULL_ERROR="1", LORAHYDRA_TRACEBACK="0")
    assert_one_line(done, 2, "lora.r=0 is not allowed")


MISTAKES = {
    "missing": (None, ["rows.jsonl: no such file"]),
    "empty": ("", ["rows.jsonl", "empty"]),
    "wrong columns": ('{"a": "1", "b": "2"}\n' * 20, ["rows.jsonl", "a, b"]),
    "broken JSON": ("\n".join([ROW] * 6 + ['{"prompt": "x", '] + [ROW] * 3), ["rows.jsonl:7"]),
    "latin-1": (
        f"{ROW}\n".encode() + '{"prompt": "é", "completion": "b"}\n'.encode("latin-1"),
        ["rows.jsonl:2", "UTF-8"],
    ),
    "one row": (ROW, ["rows.jsonl"]),
    "long answer": (
        "\n".join(json.dumps({"prompt": f"p{n}", "completion": "word " * (3000 if n == 4 else 3)}) for n in range(20)),
        ["rows.jsonl:5", "data.max_length=1024"],
    ),
    "empty answer": ("\n".join([ROW, '{"prompt": "x", "completion": ""}', ROW]), ["rows.jsonl:2", "completion"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_data(place: Path, name: str, tiny_model: Path, tiny_encoder: Path, run_trial: Run) -> None:
    content, parts = MISTAKES[name]
    file = "data.train_file=rows.jsonl" if content is None else with_rows(place, content)
    done = run_trial(
        place, "model=local", f"model.name_or_path={tiny_model}", *scored_with(tiny_encoder), "data=local", file
    )
    assert_one_line(done, 2, *parts)
    assert not list(place.glob("outputs/*/*/adapter")), "nothing half-written"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "code", "parts"),
    [
        (["model.name_or_path=./no-such-model"], 2, ["no-such-model", "does not exist"]),
        (["model.name_or_path=no such model"], 2, ["no such model"]),
        (["model.name_or_path=nobody/no-such-model"], 3, ["nobody/no-such-model", "experiment=demo"]),
        (["model=smollm2_135m"], 2, ["lorahydra models fetch smollm2-135m-instruct"]),
        (["model.device=cuda:99"], 2, ["model.device"]),
        (["tracking.uri=sqlite:////proc/none/mlflow.db"], 3, ["/proc/none"]),
        (["tracking.uri=carrier-pigeon://x"], 2, ["carrier-pigeon"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else str(value),
)
def test_a_mistake_elsewhere(place: Path, overrides: list[str], code: int, parts: list[str], run_trial: Run) -> None:
    done = run_trial(place, *overrides, LORAHYDRA_CACHE=str(place / "cache"))
    assert_one_line(done, code, *parts)


def test_an_output_folder_in_the_place_of_a_file(tmp_path: Path, run: Run) -> None:
    (tmp_path / "outputs").touch()
    assert_one_line(run(tmp_path, "experiment=demo"), 2, "cannot read or write outputs", "a part of the path is a file")


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_a_full_disk(place: Path, tiny_model: Path, tiny_encoder: Path, run_trial: Run) -> None:
    small = place / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(small)], check=False)
    if mounted.returncode:
        pytest.skip("may not mount")
    study = [
        "-m", "model=local", f"model.name_or_path={tiny_model}", *scored_with(tiny_encoder), "study=full",
        "evaluation.max_new_tokens=4", "training.max_steps=2", "hydra.sweeper.n_trials=2", f"hydra.sweep.dir={small}/s",
    ]  # fmt: skip
    try:
        (small / "other.bin").write_bytes(bytes(3_120_000))
        assert_one_line(run_trial(place, *study), 2, "cannot write to", str(small), "the disk is full", "resume full")
        # There is room for the trials, but not for MLflow's copy of the source.
        (small / "other.bin").write_bytes(bytes(1_600_000))
        assert_one_line(run_trial(place, *study), 2, "cannot write to", str(small), "the disk is full", "resume full")
        (small / "other.bin").unlink()
        done = run_trial(place, *study)
        assert (done.returncode, done.stderr) == (0, "")
        assert (small / "s" / "best" / "adapter_model.safetensors").is_file()
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


@pytest.mark.slow
def test_a_trial_from_the_command_line(place: Path, tiny_model: Path, run_trial: Run) -> None:
    fetch("all-minilm-l6-v2")
    rows = "\n".join(json.dumps({"вопрос": f"Сколько {n}?", "ответ": f"{n}"}) for n in range(30))
    file = with_rows(place, rows, "мои данные.jsonl")
    done = run_trial(
        place, "model=local", f"model.name_or_path={tiny_model}", "evaluation=minilm", "evaluation.max_new_tokens=4",
        "training.max_steps=2", "data=local", file, "data.columns.question=вопрос", "data.columns.answer=ответ",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "LLM judge off: BERTScore only" in done.stdout
    assert "Evaluation (no LLM judge): BERTScore=" in done.stdout
    assert "combined changed by" in done.stdout
    [adapter] = place.glob("outputs/*/*/adapter/adapter_model.safetensors")
    assert adapter.stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_says_how_to_go_on(
    sent: signal.Signals, place: Path, tiny_model: Path, tiny_encoder: Path, programs: ProgramRunner
) -> None:
    command = [
        TRAIN, "model=local", f"model.name_or_path={tiny_model}", *scored_with(tiny_encoder),
        "training.max_steps=100000", "training.save_steps=5", "hydra.run.dir=out",
    ]  # fmt: skip
    running = programs.start(command, place)
    running.wait_for(lambda: any((place / "out" / "checkpoints").glob("checkpoint-*")))
    running.send_signal(sent)
    assert running.wait() == 130
    [line] = running.errors.strip().splitlines()
    assert line.startswith("lorahydra: interrupted; go on with: python ")
    assert "training.resume=true" in line
    assert "hydra.run.dir=" in line


def test_the_installed_command_does_the_same(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).parent / "lorahydra"), "train", "lora.r=0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert_one_line(done, 2, "lora.r=0 is not allowed")
