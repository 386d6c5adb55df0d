"""A study with DPO: pairs of answers, trials side by side, rates and betas of its own space."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.models import make_tiny_encoder
from tests.support.programs import TRAIN, ProgramRunner
from tests.support.stores import client_of, runs_of

pytestmark = pytest.mark.slow


def test_a_study_with_preferences(
    tiny_model: Path, place: Path, programs: ProgramRunner, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pairs = [{"prompt": f"{n} + 1?", "chosen": f"{n + 1}", "rejected": "no idea " * (n % 3 + 1)} for n in range(40)]
    file = place / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    encoder = make_tiny_encoder(tmp_path_factory.mktemp("encoder"))
    common = (
        *("model=local", f"model.name_or_path={tiny_model}", "model.device=cpu", "data=local"),
        *(f"data.train_file={file}", f"evaluation.bertscore_model={encoder}", "evaluation.bertscore_num_layers=2"),
        *("evaluation.max_new_tokens=4", "training.num_train_epochs=1", "tracking.system_metrics=false"),
    )
    study = (
        *("-m", "training.method=dpo", "study=preferred", "hydra.sweeper.n_trials=3", "training.pack=3"),
        "hydra/sweeper/sampler=random",
    )
    done = programs.run([TRAIN, *common, *study], place)
    assert done.returncode == 0, done.stderr
    assert "are trained together" in done.stdout
    assert "losses of trials that differ in training.dpo_beta do not compare" in done.stdout
    [parent] = runs_of(place, "study")
    trials = runs_of(place, "trial")
    assert len(trials) == 3
    metrics = client_of(place).get_run(trials[0].info.run_id).data.metrics
    assert {"eval/loss", "eval/reward_accuracy", "eval/reward_margin", "eval/bertscore_f1"} <= metrics.keys()
    assert 0 <= metrics["eval/reward_accuracy"] <= 1
    params = [client_of(place).get_run(trial.info.run_id).data.params for trial in trials]
    assert len({each["training.dpo_beta"] for each in params}) == 3
    assert all(5e-6 <= float(each["training.learning_rate"]) <= 5e-4 for each in params)
    assert parent.data.tags["lorahydra.state"] == "complete"

    refused = programs.run([TRAIN, *common], place)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "holds pairs of answers (chosen and rejected): set training.method=dpo" in refused.stderr
    refused = programs.run([TRAIN, *common, "training.method=dpo", "data.columns.chosen=answer"], place)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "holds no pairs of answers, which training.method=dpo needs" in refused.stderr
