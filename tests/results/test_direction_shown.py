"""What a direction says of itself in a terminal and in a notebook."""

import torch

from interp.results.direction import Direction


def test_a_direction_is_one_short_line_and_a_table():
    vector = torch.zeros(400, dtype=torch.float64)
    vector[0] = 3.0
    one = Direction(
        vector=vector, kind="behaviour", site="resid_post", layer=4, position=-1, sign=-1,
        n=(8, 9), model_hash="f" * 64, token="<s>",
    )  # fmt: skip
    assert repr(one) == (
        "Direction(behaviour L4.resid_post at -1, length 3, n=(8, 9), difference in means)"
    )
    shown = one._repr_html_()
    assert "<s>" not in shown
    for words in ("&lt;s&gt;", "8 and 9", "-1", "3 of 400 numbers", "f" * 12):
        assert words in shown
    assert "f" * 13 not in shown
