"""One scale for the readings of several prompts."""

import numpy as np
import pytest

from interp.steering.projections import on_one_scale


def test_the_long_first_tokens_do_not_hide_the_others() -> None:
    rows = [np.array([660.0, 1.0, -1.0]), np.array([640.0, -2.0, 2.0])]
    middle, reach, places = on_one_scale(rows)
    assert middle == 0
    assert reach == pytest.approx(2, abs=0.2)
    assert [row[0] for row in places] == [1, 1]
    assert places[1][2] == pytest.approx(2 / reach) == -places[1][1]


def test_prompts_of_one_token_are_scaled_by_it() -> None:
    middle, reach, places = on_one_scale([np.array([3.0]), np.array([5.0])])
    assert (middle, reach) == (4, 1)
    assert [row.tolist() for row in places] == [[-1], [1]]
