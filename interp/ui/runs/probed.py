"""Kept probes on Runs: how well each tells two kinds of texts apart, beside shuffled labels."""

from __future__ import annotations

from typing import Any

from interp.plots.lines import interval_lines
from interp.probing.probes import Probes
from interp.ui.shared import widgets

SHUFFLED = "shuffled labels"


def auc_lines(rows: widgets.Rows, name: str) -> Any:
    """AUC by layer with its interval, and in grey that of shuffled labels; `name` is the line's."""
    lines = {
        words: tuple([row[f"{start}auc{end}"] for row in rows] for end in ("", "_low", "_high"))
        for words, start in ((name, ""), (SHUFFLED, "shuffled_"))
    }
    drawn = interval_lines(
        lines,  # type: ignore[arg-type]
        x=[row["layer"] for row in rows],
        x_title="layer",
        y_title="AUC, held-out prompts",
        controls=[SHUFFLED],
        limits=(-0.02, 1.04),
    )
    return widgets.legend_below(drawn, height=380, room=100)


def show_probes(probes: Probes) -> widgets.Rows:
    """AUC on held-out texts with its interval, by layer, and as a table; returns the rows."""
    rows: widgets.Rows = probes.to_dataframe().to_dict("records")  # type: ignore[assignment]
    named = list(probes.coordinates)
    if named == ["layer"]:
        widgets.figure(
            auc_lines(rows, "probes"),
            key="kept-probes",
            alt="AUC of the kept probes by layer, beside shuffled labels",
        )
    widgets.table(
        [
            {
                **{name: row[name] for name in named},
                "AUC": row["auc"],
                "95 % interval": widgets.span(row["auc_low"], row["auc_high"]),
                "shuffled labels, 95 % range": widgets.span(
                    row["shuffled_auc_low"], row["shuffled_auc_high"]
                ),
                "held out": row["n_test"],
            }
            for row in rows
        ],
        key="probe-rows",
    )
    widgets.caveat(
        "A probe that reads a label shows that the state differs, not that the model uses it."
    )
    return rows
