"""Tasks of one's own prompts."""

import pytest

import interp
from interp.core.errors import InterpError

ROWS = [("a b", "a c", " Paris", " Rome"), ("d e", "d f", [" x", " y"], " z")]


def test_pairs_are_several_of_pair():
    task = interp.pairs(ROWS)
    assert task.pairs == tuple(interp.pair(*row).pairs[0] for row in ROWS)
    assert task.metric.name == "logit_diff"
    assert eval(task.source) == task  # noqa: S307
    assert interp.pairs(ROWS[0]).pairs == interp.pair(*ROWS[0]).pairs
    assert interp.pairs([("a", None, " b")]).metric.name == "log_odds"
    assert interp.pairs([*ROWS, ("g", "h", " i")]).metric.name == "log_odds"


@pytest.mark.parametrize("rows", [["ab", "cd"], [("a", "b")], [ROWS], []])
def test_what_is_no_row_is_refused(rows):
    with pytest.raises(InterpError, match=r"give \(clean, corrupted|no prompts"):
        interp.pairs(rows)
