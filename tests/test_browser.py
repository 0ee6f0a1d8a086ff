"""The workbench in a real browser: run a sweep, click a head on the map, read its detail."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browsing import (
    NEEDED,
    click_at,
    has_button,
    mouse,
    press,
    running_app,
    running_browser,
    texts,
    until,
)

pytestmark = NEEDED


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    with running_app(tmp_path) as found:
        yield found


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    with running_browser(tmp_path) as driver:
        yield driver


TARGET = """
const chart = document.querySelector(arguments[0] + " .js-plotly-plot");
for (const trace of chart?._fullData || []) {
  const words = Array.isArray(trace.hovertext) ? trace.hovertext : [];
  const at = words.findIndex(text => String(text).startsWith(arguments[1]));
  if (at >= 0) {
    const {xaxis, yaxis} = chart._fullLayout;
    chart.scrollIntoView({block: "center"});
    const box = chart.getBoundingClientRect();
    return [
      box.left + xaxis._offset + xaxis.d2p(trace.x[at]),
      box.top + yaxis._offset + yaxis.d2p(trace.y[at]),
    ];
  }
}
"""
"""Where the point whose hover text begins so is drawn, in pixels of the window."""


def click_target(browser: Any, chart: str, name: str) -> str:
    """Click a point of a chart by its name; returns the label that hovering showed."""
    place = until(lambda: browser.execute_script(TARGET, chart, f"<b>{name}</b>"), f"{name} drawn")
    mouse(browser, "mouseMoved", *place)
    label = until(lambda: texts(browser, f"{chart} .hovertext"), "the hover label")[0]
    click_at(browser, *place)
    return label


def test_run_click_and_read(address: str, browser: Any) -> None:
    browser.get(f"{address}/patching?model=toy-induction&task=toy-induction&n=12")
    press(browser, "Run")
    assert click_target(browser, ".st-key-map", "L1H2").startswith("L1H2  1.000")
    until(lambda: "L1H2" in texts(browser, "h3"), "the detail")
    until(lambda: "Inside L1H2" in texts(browser, "h3"), "the head")
    page = browser.find_element("tag name", "body").text
    assert "effect 1.000 of the gap" in page
    assert "of 8" in page
    assert "layer=1" in browser.current_url
    assert "head=2" in browser.current_url

    browser.get(browser.current_url)  # a fresh visit by the link: same cell, nothing to run
    until(lambda: "Inside L1H2" in texts(browser, "h3"), "the restored detail")
    assert not has_button(browser, "Run")


def test_an_edge_of_a_circuit_is_clicked(address: str, browser: Any) -> None:
    browser.get(f"{address}/circuits?model=toy-induction&task=toy-induction&n=12")
    press(browser, "Find")
    graph, edge = ".st-key-circuit-graph", "L1H2->logits"
    assert click_target(browser, graph, edge).startswith(edge)
    until(lambda: edge in texts(browser, "h3"), "the edge's detail")
    assert "edge=L1H2" in browser.current_url

    browser.get(browser.current_url.replace("look=graph", "look=tokens"))
    press(browser, "Measure")
    carried = "L0H1->L1KV1.k @ elsewhere"
    assert click_target(browser, ".st-key-circuit-tokens", carried).startswith(carried)
    until(lambda: "L0H1->L1KV1.k" in texts(browser, "h3"), "the edge at its token")
    assert "place=elsewhere" in browser.current_url
