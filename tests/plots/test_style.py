"""Figures on a dark page, and tokens as text."""

import numpy as np
import pytest

from interp.plots.heatmaps import heat_map
from interp.plots.style import BLANK, NIGHT, darkened, visible


@pytest.mark.parametrize("scale", ["RdBu_r", "Blues", "Reds"])
def test_zero_is_dark_on_a_dark_page_and_stronger_is_lighter(scale) -> None:
    values = np.array([[-1.0, 0.0], [0.5, 1.0]])
    figure = heat_map(values, x=["a", "b"], y=["c", "d"], x_title="", y_title="", colour_title="")
    figure.data[0].update(colorscale=scale)
    assert figure.layout.plot_bgcolor == BLANK
    dark = darkened(figure)
    places = dict(dark.data[0].colorscale)
    zero = 0.5 if scale == "RdBu_r" else 0.0
    assert places[zero] == NIGHT
    for side in ([at for at in places if at >= zero], [at for at in places if at <= zero]):
        order = sorted(side, key=lambda at: abs(at - zero))
        brightness = [sum(bytes.fromhex(places[at][1:])) for at in order]
        assert brightness == sorted(brightness)
    assert dark.layout.plot_bgcolor != BLANK
    assert (dark.data[0].z == values).all()


@pytest.mark.parametrize(
    ("token", "shown"),
    [(" a", "␣a"), ("a b\n", "a␣b↵"), ("\t", "\\t"), ("\xa0", "\\xa0"), ("é", "é"), ("", "")],
)
def test_every_character_of_a_token_can_be_seen(token, shown) -> None:
    assert visible(token) == shown
