"""What a study may go on with: settings, limits and data that leave its trials comparable."""

from __future__ import annotations

import pytest
from tests.support.configs import composed

from lorahydra.errors import StudyError
from lorahydra.sweep.study_spec import DATA_CONTENT, ROWS_CONTENT, check_same, experiment_spec, kept_settings

SPLITS = {DATA_CONTENT: "aaa bbb ccc"}
FIT, OTHER, FEWER = ({ROWS_CONTENT: digests} for digests in ("aaa bbb fff", "aaa bbb ggg", "aaa eee fff"))


def spec(*overrides: str, **content: str) -> dict[str, str]:
    return experiment_spec(composed("data=local", "data.train_file=a", *overrides), {}, ["combined"], ()) | content


def refused(before: dict[str, str], now: dict[str, str]) -> bool:
    try:
        check_same("s", before, now)
    except StudyError:
        return True
    return False


def test_a_key_that_an_older_version_did_not_know_is_its_default() -> None:
    old = spec()
    for key in ("data.system_prompt", "training.weight_decay"):
        del old[key]
    assert not refused(old, spec())
    with pytest.raises(StudyError, match=r"training\.weight_decay: not set → 0\.1"):
        check_same("s", old, spec("training.weight_decay=0.1"))


@pytest.mark.parametrize(
    ("before", "now", "fits"),
    [
        (["data.overlong=error"], ["data.overlong=drop"], True),
        (["data.overlong=error"], ["data.overlong=truncate", "data.max_length=2048"], True),
        (["data.overlong=error"], ["data.overlong=drop", "data.max_length=512"], False),
        (["data.overlong=drop"], ["data.overlong=error"], False),
        (["data.overlong=drop"], ["data.overlong=drop", "data.max_length=2048"], False),
    ],
)
def test_without_digests_only_what_an_error_let_through_may_be_limited_otherwise(
    before: list[str], now: list[str], fits: bool
) -> None:
    assert refused(spec(*before), spec(*now, **SPLITS, **FIT)) is not fits


@pytest.mark.parametrize(("rows", "fits"), [(FIT, True), (OTHER, False), (FEWER, False)])
def test_with_digests_the_rows_that_fit_decide(rows: dict[str, str], fits: bool) -> None:
    before = spec("data.overlong=drop", **SPLITS, **FIT)
    assert refused(before, spec("data.max_length=512", **SPLITS, **rows)) is not fits
    # A process that only starts workers has no digests, and the workers compare them.
    assert not refused(before, spec("data.max_length=512"))


def test_validation_rows_that_an_older_version_scored_may_not_be_left_out() -> None:
    old = spec("data.overlong=drop", **SPLITS)
    assert not refused(old, spec("data.overlong=drop", **SPLITS, **FIT))
    assert refused(old, spec("data.overlong=drop", **SPLITS, **FEWER))


def test_another_test_split_is_said_and_other_rows_to_choose_by_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    assert not refused(spec(**SPLITS), spec("data.test_file=t", **{DATA_CONTENT: "aaa bbb ddd"}))
    assert "The test split of study s is not the one that it began with" in caplog.text
    assert not refused(spec(**SPLITS), spec(**{DATA_CONTENT: "aaa bbb"}))
    assert refused(spec(**SPLITS), spec(**{DATA_CONTENT: "aaa eee ccc"}))
    assert refused(spec(**SPLITS), spec(**{DATA_CONTENT: "eee bbb ccc"}))


def test_what_an_older_version_did_not_let_change_may_change() -> None:
    assert not refused(spec() | {"judge.repeats": "1", "judge.timeout": "7"}, spec("judge.repeats=3"))
    assert refused(spec(), spec("judge.min_coverage=0.5"))


def test_a_study_of_an_older_version_keeps_the_last_adapter() -> None:
    old = spec()
    del old["training.keep"]
    assert kept_settings(old, []) == ["training.keep=last"]
    assert kept_settings(old, ["training.keep=best"]) == []
    assert not refused(old, spec("training.keep=last"))
    with pytest.raises(StudyError, match=r"training\.keep: last → best"):
        check_same("s", old, spec())


def test_a_study_of_an_older_version_keeps_the_words_of_its_judge() -> None:
    old = spec()
    del old["judge.prompt_wording"]
    assert kept_settings(old, []) == ["judge.prompt_wording=1"]
    assert refused(old, spec())
    assert not refused(old, spec("judge.prompt_wording=1"))


def test_another_search_space_is_refused() -> None:
    searched = experiment_spec(
        composed("data=local", "data.train_file=a"), {"lora.r": "1 to 8"}, ["combined"], ["lora.r"]
    )
    assert "lora.r" not in searched
    with pytest.raises(StudyError, match="search of lora.r: 1 to 8 → not set"):
        check_same("s", searched, spec())


def test_a_study_of_an_older_version_keeps_its_splits() -> None:
    old = spec(**SPLITS)
    del old["data.split_version"]
    assert kept_settings(old, ["lora.r=4"]) == ["data.split_version=1"]
    assert kept_settings(old, ["data.split_version=2"]) == []
    assert kept_settings(spec(), []) == kept_settings({}, []) == kept_settings({"search of x": "1"}, []) == []
    assert not refused(old, spec("data.split_version=1", **SPLITS))
    # Where both versions give the same splits, as in large data, either will do.
    assert not refused(old, spec(**SPLITS))
    with pytest.raises(StudyError, match=r"data\.split_version: 1 → 2"):
        check_same("s", old, spec(**{DATA_CONTENT: "ddd eee fff"}))
    assert refused(old, spec())
