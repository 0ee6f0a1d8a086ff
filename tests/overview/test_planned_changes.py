"""Rows of a table of changes: read, written, and matched by random ones."""

import pytest

from interp.core.components import Component
from interp.core.errors import InterpError
from interp.overview.planned_changes import PlannedChange, random_rows


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("L1H0", PlannedChange(component="L1H0")),
        ("L1H0, steer, -2.5", PlannedChange(component="L1H0", how="steer", strength=-2.5)),
        (
            "L2.mlp_out, scale, 0.5, last token, off",
            PlannedChange(
                component="L2.mlp_out", how="scale", strength=0.5, when="last token", on=False
            ),
        ),
    ],
)
def test_a_row_is_read_and_written(text, expected) -> None:
    assert PlannedChange.parse(text) == expected
    assert PlannedChange.parse(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("head 3", "write L17H11"),
        ("", "write L17H11"),
        ("L1.nonsense", "no such name"),
        ("L1H0, remove", "known: mean, patch"),
        ("L1H0, zero, much", "write 'L20H0, zero'"),
        ("L1H0, zero, inf", "finite"),
        ("L1H0, zero, 1, never", "known: all tokens"),
        ("L1H0, zero, 1, all tokens, 7", "direction 7, which fits only whole sites"),
    ],
)
def test_an_odd_row_says_what_to_write(text, words) -> None:
    with pytest.raises(InterpError, match=words):
        PlannedChange.parse(text)


def test_random_changes_match_kind_layer_and_count(toy) -> None:
    texts = ("L1H0, zero", "L0H1, scale, 2", "L1H2, patch", "L0.mlp_out", "L1H0, steer")
    rows = [PlannedChange.parse(text) for text in texts]
    drawn = list(random_rows(toy, rows, 8, 3))
    assert len({tuple(map(str, one)) for one in drawn}) == len(drawn) > 1
    for one in drawn:
        assert [(r.how, r.strength) for r in one] == [(r.how, r.strength) for r in rows]
        parts = [row.part for row in one]
        assert [part.layer for part in parts[:3]] == [1, 0, 1]
        assert {parts[0].index, parts[2].index}.isdisjoint({0, 2})
        assert parts[0] == parts[4]  # one component stays one
        assert parts[3] == Component(1, "mlp_out")


def test_a_whole_site_along_a_direction_keeps_its_place(toy) -> None:
    row = PlannedChange.parse("L0.resid_post, steer")
    assert list(random_rows(toy, [row], 3, 0)) == [(row,)] * 3
