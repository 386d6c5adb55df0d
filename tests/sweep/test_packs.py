"""Trials of a study that are trained side by side: the same trials as one by one, each with its own run and end."""

from __future__ import annotations

import shutil
import signal
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.trial import Trial
from tests.judges.wire import KEY, MODEL, judge_server
from tests.support.models import make_tiny_encoder
from tests.support.programs import ProgramRunner, RunningProgram, environment
from tests.support.questions import write_questions
from tests.support.stores import client_of, runs_of
from tests.sweep.conftest import stored_trials

from lorahydra import LoRATuner
from lorahydra.errors import JudgeError
from lorahydra.names import State
from lorahydra.sweep import trial_pack
from lorahydra.sweep.study_result import StudyResult
from lorahydra.training import engine, loop
from lorahydra.training.loop import fit
from lorahydra.trial import steps

pytestmark = pytest.mark.slow

RATE = "training.learning_rate=tag(log, interval(1e-4, 1e-2))"
TIMES = ("time/", "system/", "train/tokens_per_second")
Points = list[tuple[int, float]]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_encoder(tmp_path_factory.mktemp("encoder"))


def settings(model: Path, encoder: Path, folder: Path, *overrides: str) -> list[str]:
    """Overrides of a study of the tiny models on rows in a folder."""
    rows = write_questions(folder / "rows.jsonl")
    return [
        *("model=local", f"model.name_or_path={model}", "model.device=cpu"),
        *("data=local", f"data.train_file={rows}"),
        *(f"evaluation.bertscore_model={encoder}", "evaluation.bertscore_num_layers=2", "evaluation.max_new_tokens=4"),
        *("training.num_train_epochs=1", "tracking.system_metrics=false", "study=packs"),
        *("hydra/sweeper/sampler=random", "hydra/sweeper/pruner=none", "hydra.sweeper.n_trials=4", RATE, *overrides),
    ]


def run(model: Path, encoder: Path, folder: Path, *overrides: str) -> StudyResult:
    with chdir(folder):
        return LoRATuner(overrides=settings(model, encoder, folder, *overrides)).run()


def points(folder: Path, run_id: str) -> dict[str, Points]:
    """Every metric of a run that is not a time."""
    client = client_of(folder)
    names = [name for name in client.get_run(run_id).data.metrics if not name.startswith(TIMES)]
    return {name: [(p.step, p.value) for p in client.get_metric_history(run_id, name)] for name in names}


def test_trials_of_a_pack_are_those_of_a_study_without(
    tiny_model: Path,
    encoder: Path,
    place: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[int] = []

    def counted(base: Any, pack: Any, adapters: Any, *others: Any) -> None:
        sizes.append(len(adapters))
        fit(base, pack, adapters, *others)

    monkeypatch.setattr(engine, "fit", counted)
    space = ("lora.lora_dropout=choice(0.0, 0.1)", "training.per_device_train_batch_size=choice(2, 4)")
    other = tmp_path_factory.mktemp("alone")
    shutil.copy(place / "mlflow.db", other)
    packed = run(tiny_model, encoder, place, *space, "training.pack=4")
    assert (sum(sizes), len(sizes)) == (4, 2), "a pack for each batch size"
    alone = run(tiny_model, encoder, other, *space)
    assert sizes[2:] == [1, 1, 1, 1]
    assert len({trial.params["training.per_device_train_batch_size"] for trial in alone.trials}) == 2
    for one, two in zip(packed.trials, alone.trials, strict=True):
        assert (one.params, one.values) == (two.params, two.values)
        assert points(place, one.run_id or "") == points(other, two.run_id or "")
        weights = [
            folder / "outputs/packs" / str(one.number) / "adapter/adapter_model.safetensors"
            for folder in (place, other)
        ]
        assert weights[0].read_bytes() == weights[1].read_bytes()
    logs = [(place / "outputs/packs" / str(number) / "train.log").exists() for number in range(4)]
    assert logs == [(other / "outputs/packs" / str(number) / "train.log").exists() for number in range(4)]


def ends(place: Path) -> dict[int, tuple[str, str, str]]:
    """State in Optuna, and status and state in MLflow, of each trial."""
    optuna_states = {t.number: t.state.name for t in stored_trials(f"sqlite:///{place}/studies.db", "packs")}
    tags = {int(run.data.tags["lorahydra.trial_number"]): run for run in runs_of(place, "trial")}
    return {
        number: (state, tags[number].info.status, tags[number].data.tags["lorahydra.state"])
        for number, state in optuna_states.items()
        if number in tags
    }


COMPLETE = ("COMPLETE", "FINISHED", "complete")
PRUNED = ("PRUNED", "KILLED", "pruned")
FAILED = ("FAIL", "FAILED", "failed")
INTERRUPTED = ("FAIL", "KILLED", "interrupted")


def test_one_that_fails_does_not_end_the_others(tiny_model: Path, encoder: Path, place: Path) -> None:
    rates = ("training.learning_rate=choice(1e-8, 2e-8, 0.9)", "hydra/sweeper/sampler=grid")
    fails = ("training.max_grad_norm=0", f"lora.lora_alpha={2**20}")
    result = run(tiny_model, encoder, place, *rates, *fails, "training.pack=3", "hydra.sweeper.n_trials=3")
    failed = {trial.number: trial for trial in result.trials if trial.params["training.learning_rate"] == 0.9}
    assert ends(place) == {n: FAILED if n in failed else COMPLETE for n in range(3)}
    assert all(str(trial.failure).startswith(("diverged: ", "nan: ")) for trial in failed.values())


def test_one_that_does_not_fit_the_model_fails_alone(tiny_model: Path, encoder: Path, place: Path) -> None:
    space = ("lora.target_modules=choice([q_proj],[nonexistent])", "training.learning_rate=choice(0.001,0.002)")
    more = ("hydra/sweeper/sampler=grid", "training.pack=4", "hydra.sweeper.max_failure_rate=1")
    result = run(tiny_model, encoder, place, *space, *more)
    wrong = {trial.number for trial in result.trials if "nonexistent" in str(trial.params["lora.target_modules"])}
    assert len(wrong) == 2
    assert ends(place) == {n: FAILED if n in wrong else COMPLETE for n in range(4)}
    assert all("nonexistent" in str(trial.failure) for trial in result.trials if trial.number in wrong)


def prune_trial_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trial, "should_prune", lambda self: self.number == 1)


def test_a_pruned_trial_stays_pruned_when_its_pack_is_interrupted(
    tiny_model: Path, encoder: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    prune_trial_1(monkeypatch)
    pack = ("training.pack=2", "hydra.sweeper.n_trials=2", "training.num_train_epochs=2")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(steps.Trial, "predict", interrupted)
        run(tiny_model, encoder, place, *pack)
    assert ends(place) == {0: INTERRUPTED, 1: PRUNED}
    run(tiny_model, encoder, place, *pack)
    assert ends(place) == {0: INTERRUPTED, 1: PRUNED, 2: COMPLETE}


@pytest.mark.parametrize(("owner", "name"), [(steps, "start_trial"), (steps.Trial, "open")])
def test_a_run_is_closed_when_it_was_being_opened(
    tiny_model: Path, encoder: Path, place: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    opens = getattr(owner, name)

    def interrupted(*arguments: Any) -> Any:
        opened = opens(*arguments)
        signal.raise_signal(signal.SIGINT)
        return opened

    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_model, encoder, place, "training.pack=2", "hydra.sweeper.n_trials=2")
    assert ends(place) == {0: INTERRUPTED}


def test_a_pack_that_begins_again_for_want_of_memory_reports_each_step_once(
    tiny_model: Path, encoder: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prune_trial_1(monkeypatch)
    drop_ended, ran_out = loop._Run.drop_ended, []

    def run_out(self: Any) -> None:
        drop_ended(self)
        if not ran_out and len(self.adapters) == 2:
            ran_out.append(True)
            raise torch.OutOfMemoryError

    monkeypatch.setattr(loop._Run, "drop_ended", run_out)
    run(tiny_model, encoder, place, "training.pack=3", "hydra.sweeper.n_trials=3", "training.num_train_epochs=2")
    assert ran_out
    assert ends(place) == {0: COMPLETE, 1: PRUNED, 2: COMPLETE}
    measured = [trial.intermediate_values for trial in stored_trials(f"sqlite:///{place}/studies.db", "packs")]
    assert [sorted(values) for values in measured] == [[1, 2], [1], [1, 2]]
    for trial in runs_of(place, "trial"):
        recorded = points(place, trial.info.run_id)["train/loss"]
        assert len(dict(recorded)) == len(recorded)


def started(programs: ProgramRunner, overrides: list[str], place: Path) -> RunningProgram:
    """A study of one pack in a process of its own, in the middle of its training."""
    command = ["-m", "lorahydra", "train", "-m", *overrides]
    # The last trial of the pack writes its second checkpoint.
    pause = "outputs/packs/2/checkpoints/checkpoint-2"
    program = programs.start(command, place, environment(HF_HUB_OFFLINE="1"), pause_at=pause)
    program.wait_until_paused()
    assert all(any(place.glob(f"outputs/packs/{n}/checkpoints/*")) for n in range(3))
    return program


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_pack_whose_process_ends_is_run_again_once(
    tiny_model: Path, encoder: Path, place: Path, programs: ProgramRunner, how: signal.Signals
) -> None:
    long = ("training.num_train_epochs=1", "training.save_steps=1", "training.pack=3", "hydra.sweeper.n_trials=3")
    program = started(programs, settings(tiny_model, encoder, place, *long), place)
    program.send_signal(how)
    assert program.wait() == (130 if how is signal.SIGINT else -9)
    before = stored_trials(f"sqlite:///{place}/studies.db", "packs")
    if how is signal.SIGINT:
        assert {run.info.status for run in runs_of(place, "trial")} == {"KILLED"}
    resumed = programs.run(["-m", "lorahydra", "studies", "resume", "packs"], place, environment(HF_HUB_OFFLINE="1"))
    assert resumed.returncode == 0, resumed.stderr
    after = stored_trials(f"sqlite:///{place}/studies.db", "packs")
    complete = [trial.params for trial in after if trial.state.name == "COMPLETE"]
    assert sorted(map(str, complete)) == sorted(str(trial.params) for trial in before[:3])
    statuses = sorted(run.info.status for run in runs_of(place, "trial"))
    assert statuses == ["FINISHED"] * 3 + ["KILLED"] * 3


@pytest.mark.service
def test_what_a_judge_has_not_judged_is_judged_later_without_training_again(
    tiny_model: Path,
    encoder: Path,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    own_cache: Path,
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "*")
    judge = (
        "judge=gemini",
        f"judge.model={MODEL}",
        "judge.max_retries=0",
        "training.pack=2",
        "hydra.sweeper.n_trials=2",
    )

    def tuned(server: Any) -> StudyResult:
        return run(tiny_model, encoder, place, *judge, f"judge.base_url={server.gemini}")

    with judge_server(lambda request, attempt: "503") as server, pytest.raises(JudgeError):
        tuned(server)
    adapters = {path: path.stat().st_mtime_ns for path in place.glob("outputs/packs/*/adapter/*.safetensors")}
    assert len(adapters) == 2
    with judge_server() as server:
        result = tuned(server)
    assert [trial.state for trial in result.trials].count(State.COMPLETE) == 2
    assert {path: path.stat().st_mtime_ns for path in place.glob("outputs/packs/*/adapter/*.safetensors")} == adapters
    assert all(trial.judge_score is not None for trial in result.trials if trial.state is State.COMPLETE)


def test_trials_that_cannot_answer_together_answer_one_by_one(
    tiny_model: Path, encoder: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("not together")

    monkeypatch.setattr(trial_pack, "answer_together", broken)
    result = run(tiny_model, encoder, place, "training.pack=4")
    assert ends(place) == dict.fromkeys(range(4), COMPLETE)
    assert result.best.number in range(4)
