"""Figures on a dark page, and tokens as text."""

import numpy as np
import pytest
from plotly.colors import sample_colorscale

from interp.plots.heatmaps import heat_map, pattern_thumbnails
from interp.plots.style import BLANK, DARK_BLANK, NIGHT, as_bytes, darkened, visible
from interp.plots.tokens import token_table


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
    ("page", "blank", "first"),
    [(lambda figure: figure, BLANK, "rgb(247,251,255)"), (darkened, DARK_BLANK, NIGHT)],
    ids=["light", "dark"],
)
def test_absent_cells_of_thumbnails_are_blank_and_weights_have_their_colours(
    page, blank, first
) -> None:
    weights = np.array([[[[0.0, np.nan], [0.25, 1.0]]]])
    cells = page(pattern_thumbnails(weights)).data[0]
    scale = [[at, colour] for at, colour in cells.colorscale]
    shown = np.array(cells.z, dtype=float) / cells.zmax
    assert [scale[0][1], scale[2][1], scale[-1][0]] == [blank, first, 1.0]
    assert shown[2, 0] == shown[0, 1] == 0
    middle = 0.5 / cells.zmax
    assert scale[1][0] == scale[2][0] == middle
    assert middle < shown[0, 0] < shown[1, 0] < shown[1, 1] == 1
    back = (shown * cells.zmax - 1) / 254
    assert back[:2, :2] == pytest.approx(np.nan_to_num(weights[0, 0], nan=-1 / 254), abs=0.5 / 254)
    assert as_bytes(weights).dtype == np.uint8


@pytest.mark.parametrize(
    ("token", "shown"),
    [(" a", "␣a"), ("a b\n", "a␣b↵"), ("\t", "\\t"), ("\xa0", "\\xa0"), ("é", "é"), ("", "")],
)
def test_every_character_of_a_token_can_be_seen(token, shown) -> None:
    assert visible(token) == shown


def luminance(colour: str) -> float:
    """The relative luminance of a colour, as the Web Content Accessibility Guidelines define it."""
    parts = bytes.fromhex(colour[1:]) if colour[0] == "#" else colour[4:-1].split(",")
    shares = np.array([float(part) for part in parts]) / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("page", [lambda figure: figure, darkened], ids=["light", "dark"])
def test_the_text_of_every_cell_can_be_read(page) -> None:
    values = np.linspace(0, 1, 101)[None]
    names = [str(i) for i in range(101)]
    figure = page(token_table(values, texts=[names], x=names, y=["0"]))
    cells, texts = figure.data[:2]
    scale = [[at, colour] for at, colour in cells.colorscale]
    shades = sample_colorscale(scale, values[0].tolist())
    for shade, ink in zip(shades, texts.textfont.color, strict=True):
        low, high = sorted((luminance(shade), luminance(ink)))
        assert (high + 0.05) / (low + 0.05) > 3.5, (shade, ink)
