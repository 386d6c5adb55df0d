"""What MLflow hands over becomes conversations, and the answers are those of lorahydra's own generation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lorahydra.data.examples import Message
from lorahydra.errors import DataError
from lorahydra.inference.adapted_model import conversations, open_adapter
from lorahydra.inference.pyfunc import _load_pyfunc, conversations_of

HI = {"role": "user", "content": "Hi"}
BRIEF = {"role": "system", "content": "Be brief."}
ONE = (Message("user", "Hi"),)
TWO = (Message("system", "Be brief."), Message("user", "Hi"))


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("Hi", [ONE]),
        (["Hi", "Hi"], [ONE, ONE]),
        (pd.DataFrame({"prompt": ["Hi"]}), [ONE]),
        (pd.DataFrame({"anything": ["Hi"]}), [ONE]),
        (pd.DataFrame({0: ["Hi", "Hi"]}), [ONE, ONE]),
        (pd.DataFrame({"messages": [[BRIEF, HI]]}), [TWO]),
        (pd.DataFrame({"messages": [BRIEF, HI]}), [TWO]),
        (pd.DataFrame([{"messages": [HI]}, {"prompt": "Hi"}]), [ONE, ONE]),
        ({"prompt": "Hi"}, [ONE]),
        ({"prompt": ["Hi", "Hi"]}, [ONE, ONE]),
        ({"messages": [BRIEF, HI]}, [TWO]),
        ([{"messages": [BRIEF, HI]}, {"prompt": "Hi"}], [TWO, ONE]),
        ([[BRIEF, HI], "Hi"], [TWO, ONE]),
    ],
)
def test_conversations_in_every_form(given: Any, asked: Any) -> None:
    assert conversations_of(given) == asked


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "there is no prompt"),
        (3, "texts or lists of messages, not int"),
        ([3], "prompt 0 is neither a text nor"),
        (["Hi", [{"role": "user"}]], "prompt 1 is neither a text nor"),
        ([{"x": 1}], "neither a prompt nor messages: it has x"),
        (pd.DataFrame({"a": [1], "b": [2]}), "neither a prompt nor messages: it has a, b"),
        ({"messages": []}, "there is no prompt"),
        ([[]], "ends with nothing to answer"),
        ([[HI, {"role": "assistant", "content": "Ho"}]], "ends with nothing to answer"),
        ([[{"role": "wizard", "content": "Hi"}]], "role 'wizard'"),
        ([[{"role": "user", "content": ["parts"]}]], "prompt 0 has a message"),
    ],
)
def test_what_cannot_be_asked(given: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        conversations_of(given)


def test_answers_are_those_of_generation(tiny_adapter: Path) -> None:
    prompts = ["What is one and one?", "Hi"]
    predictor = _load_pyfunc(str(tiny_adapter), {"base_model": None, "device": "cpu", "dtype": None})
    given, shorter = predictor.predict(prompts), predictor.predict(prompts, {"max_new_tokens": 2})
    untuned = predictor.predict(prompts, {"tuned": False})
    predictor.close()
    with open_adapter(tiny_adapter, device="cpu") as model:
        asked = conversations(prompts)
        assert given == model.answer(asked)
        assert shorter == model.answer(asked, max_new_tokens=2)
        assert untuned == model.answer(asked, tuned=False)
    assert len({*given, *shorter, *untuned}) == 6, "tuned, cut and untuned answers differ"
