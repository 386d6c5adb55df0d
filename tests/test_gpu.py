"""What people do with a GPU, by the commands that they use: a study, out of memory in it, and what comes after it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from mlflow import MlflowClient
from tests.support.gpu import almost_full_gpu, needs_gpu
from tests.support.models import make_tiny_encoder

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}

SETTINGS = (
    *("data=local", "data.train_file=rows.jsonl", "data.max_length=2048"),
    *("data.validation_fraction=0.03", "data.test_fraction=0.03"),
    *("evaluation.bertscore_model=encoder", "evaluation.bertscore_num_layers=2"),
)


def python(folder: Path, *words: str) -> str:
    """Run Python in `folder`; returns what it printed."""
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def study(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study of six trials by two workers, some of which run out of memory."""
    folder = tmp_path_factory.mktemp("study")
    long = "abc " * 400
    lines = [json.dumps({"question": f"What is {n}+{n}? {long}", "answer": f"It is {2 * n}."}) for n in range(1400)]
    (folder / "rows.jsonl").write_text("\n".join(lines), "utf-8")
    make_tiny_encoder(folder / "encoder")
    # Beside another program that leaves enough for small batches.
    with almost_full_gpu(left=5 * 2**30):
        python(
            folder,
            str(ROOT / "train.py"),
            "-m",
            "study=gpu",
            *("model=local", f"model.name_or_path={tiny_model}", *SETTINGS, "evaluation.max_new_tokens=12"),
            *("training.max_steps=4", "training.per_device_train_batch_size=choice(4, 1300)", "lora.r=choice(2, 4, 8)"),
            *("hydra/sweeper/sampler=grid", "hydra/sweeper/pruner=none", "hydra.sweeper.n_trials=6"),
            *("hydra/launcher=joblib", "hydra.sweeper.n_jobs=2"),
        )
    return folder


@needs_gpu
@pytest.mark.slow
def test_trials_that_run_out_of_memory_do_not_end_a_study(study: Path) -> None:
    trials = optuna.load_study(study_name="gpu", storage=f"sqlite:///{study / 'studies.db'}").trials
    ended = {(trial.params["training.per_device_train_batch_size"], trial.state.name) for trial in trials}
    assert ended == {(4, "COMPLETE"), (1300, "FAIL")}
    runs = MlflowClient(f"sqlite:///{study / 'mlflow.db'}").search_runs(
        ["1"], "tags.`lorahydra.failure` LIKE 'out of memory%'"
    )
    assert len(runs) == 3


@needs_gpu
@pytest.mark.slow
def test_the_winner_of_a_gpu_answers_and_is_exported(study: Path) -> None:
    answer = [*("-m", "lorahydra", "generate", "gpu", "What is 2+2?", "--json")]
    on_gpu = python(study, *answer)
    assert json.loads(on_gpu)["answer"] is not None
    python(study, "-m", "lorahydra", "export", "gpu", "--to", "merged", "--merged")
    python(study, "-m", "lorahydra", "evaluate", "gpu", *SETTINGS)
    assert json.loads((study / "merged" / "config.json").read_text())["dtype"] == "bfloat16"


KINDS = {
    "packs that are halved": ("training.pack=4", "hydra/sweeper/pruner=halving", "training.evals_per_epoch=4"),
    "nf4": ("model.quantization=nf4", "training=low_memory", "training.pack=4", "hydra/sweeper/pruner=none"),
    "dpo": ("training.method=dpo", "training.pack=4", "hydra/sweeper/pruner=none"),
    "dora": ("lora.use_dora=true", "hydra/sweeper/pruner=none"),
}


@needs_gpu
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_study_on_a_gpu(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    prompt, answer, *rejected = ("prompt", "chosen", "rejected") if kind == "dpo" else ("question", "answer")
    rows = [
        {prompt: f"What is {n}+{n}?", answer: f"It is {2 * n}.", **{name: f"It is {n}." for name in rejected}}
        for n in range(1, 101)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    make_tiny_encoder(tmp_path / "encoder")
    python(
        tmp_path,
        *(str(ROOT / "train.py"), "-m", "study=small", "model=local", f"model.name_or_path={tiny_model}"),
        *("data=local", "data.train_file=rows.jsonl", "data.validation_fraction=0.2", "data.test_fraction=0.2"),
        *("evaluation.bertscore_model=encoder", "evaluation.bertscore_num_layers=2", "evaluation.max_new_tokens=12"),
        *("training.max_steps=8", "hydra.sweeper.n_trials=4", *KINDS[kind]),
    )
    trials = optuna.load_study(study_name="small", storage=f"sqlite:///{tmp_path / 'studies.db'}").trials
    states = {trial.state.name for trial in trials}
    assert len(trials) == 4
    assert states == ({"COMPLETE", "PRUNED"} if kind == "packs that are halved" else {"COMPLETE"})
