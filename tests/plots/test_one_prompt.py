"""Figures of one prompt, which has no interval and no standard error."""

import json

import numpy as np

from interp.plots.components import effect_strip
from interp.plots.heatmaps import heat_map


def test_a_strip_of_one_prompt_has_no_band() -> None:
    def shapes(low: float, high: float) -> list[str]:
        figure = effect_strip(np.array([0.3]), 1, low=low, high=high)
        return [one["type"] for one in json.loads(figure.to_json())["layout"]["shapes"]]

    assert shapes(-np.inf, np.inf) == ["line"]
    assert shapes(0.1, 0.4) == ["rect", "line"]


def test_a_map_of_one_prompt_shows_no_error() -> None:
    def sent(error: float) -> str:
        axes = {"x": ["0"], "y": ["0"], "x_title": "head", "y_title": "layer"}
        figure = heat_map(
            np.ones((1, 1)), **axes, colour_title="effect", stderr=np.full((1, 1), error)
        )
        return figure.to_json()

    assert "\\u00b1" not in sent(np.nan)
    assert "\\u00b1 0.250" in sent(0.25)
