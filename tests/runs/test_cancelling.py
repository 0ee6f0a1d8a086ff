"""Runs that take long stop where they are asked to."""

import pytest

import interp
from interp.engine.stopping import Cancelled
from interp.runs.kinds import zero
from tests.families import random_task

ROWS = [(5, 6, 7), (8, 9)]
RUNS = {
    "ablate": lambda m, c: interp.ablate(m, ROWS, zero("L1H1"), tokens=[5], cancelled=c),
    "generate": lambda m, c: interp.generate(m, ROWS, 6, cancelled=c),
    "generate changed": lambda m, c: interp.generate(m, ROWS, 6, change=zero("L1H1"), cancelled=c),
    "scan_heads": lambda m, c: interp.heads.scan_heads(
        m, random_task(), interp.heads.switch_off(m), cancelled=c
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_it_stops_in_the_middle(family_models, name):
    asked = []

    def third() -> bool:
        asked.append(1)
        return len(asked) > 3

    with pytest.raises(Cancelled):
        RUNS[name](family_models["llama"], third)
    assert len(asked) == 4


def test_intervened_text_stops_too(family_models):
    with (
        interp.intervene(family_models["llama"], zero("L1H1.q")),
        pytest.raises(Cancelled),
    ):
        interp.generate(family_models["llama"], ROWS, 6, cancelled=lambda: True)
