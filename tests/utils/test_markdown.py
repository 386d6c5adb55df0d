from __future__ import annotations

from lorahydra.utils.markdown import code, model_link, run_link, table


def test_a_value_is_nothing_but_its_text() -> None:
    assert code("a`b|c\n# d <b>") == "`a'b¦c # d <b>`"
    assert code(" \n ") == "–"
    assert code(2e-4) == "`0.0002`"


def test_table() -> None:
    lines = table(["a", "b"], [["1", "2"]])
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in lines] == [
        ["a", "b"],
        ["---", "---"],
        ["1", "2"],
    ]


def test_links_stay_within_the_page() -> None:
    assert run_link("trial 0", "1", "ab") == "[trial 0](#/experiments/1/runs/ab)"
    assert model_link("m", "3") == "[m, version 3](#/models/m/versions/3)"
