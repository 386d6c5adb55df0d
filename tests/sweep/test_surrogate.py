"""What the model expects of the next trial."""

from __future__ import annotations

import numpy as np
import pytest

from lorahydra.sweep.surrogate import expected_gain

ORDERED = np.zeros(1, dtype=np.bool_)


def gain(places: list[float], scores: list[float]) -> float:
    values = np.array(scores)
    return expected_gain(np.array(places)[:, None], values, words=ORDERED, chosen=int(values.argmax()))


def hill(place: float) -> float:
    return 0.7 - 0.2 * (place - 0.4) ** 2


def test_little_is_expected_where_the_top_is_known_and_much_where_the_scores_still_rise() -> None:
    known = [n / 9 for n in range(10)]
    rising = [n / 30 for n in range(10)]  # up to 0.3
    assert gain(known, [hill(place) for place in known]) < 0.001
    assert gain(rising, [hill(place) for place in rising]) > 0.002


def test_the_gain_is_in_the_unit_of_the_scores() -> None:
    places = [n / 9 for n in range(10)]
    scores = [hill(place) for place in places]
    points = gain(places, [100 * score + 3 for score in scores])
    assert points == pytest.approx(100 * gain(places, scores))
    assert gain(places, [0.5] * 10) == 0


def test_words_have_no_order() -> None:
    places = np.array([[n / 4, word] for n in range(5) for word in (0.0, 2.0, 1.0)])
    scores = np.array([hill(place) + (0.1 if word == 2 else 0) for place, word in places])
    words = np.array([False, True])
    chosen = int(scores.argmax())
    assert expected_gain(places, scores, words=words, chosen=chosen) < 0.005
    other = int(np.flatnonzero(places[:, 1] == 1)[2])
    assert expected_gain(places, scores, words=words, chosen=other) > 0.09
