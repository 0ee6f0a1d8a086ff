"""The parts of the report on what happens inside: behaviour, separation, directions, heads."""

from __future__ import annotations

from typing import Any

import numpy as np

from interp import plots
from interp.report import Report
from interp.studies.refusal.heading import SIDES
from interp.studies.refusal.pointing import SELECTED, place_of
from interp.studies.shown import bare, estimate, listed, null, spread
from interp.studies.steps import Result

Results = dict[str, Result]


def behaviour(report: Report, results: Results) -> None:
    """What becomes of every prompt."""
    found, first = results["behaviour"], results["tokens"]
    report.section("1. What the model does")
    report.text(
        f"Greedy texts of at most {found['decoding']['max_new_tokens']} tokens, judged by "
        f"`{found['judge']}`. Shares of all prompts of a kind and task, Wilson intervals; loops, "
        "texts cut off early and judge errors are classes of their own. These texts are the "
        "baseline of everything below; no row was selected by them for evaluation."
    )
    rows: list[dict[str, Any]] = []
    for cell in found["cells"]:
        other = {
            name: count
            for name, count in cell["labels"].items()
            if count and name not in ("direct_answer", "direct_refusal", "indirect_refusal")
        }
        rows.append(
            {
                "task": cell["task"],
                "about": cell["kind"],
                "should": cell["should"],
                "n": cell["refused"]["n"],
                "refused": estimate(cell["refused"]),
                "answered": estimate(cell["answered"]),
                "neither": ", ".join(f"{count} {name}" for name, count in other.items()) or "0",
            }
        )
    report.table(rows)
    if found["examples"]:
        report.table(
            [{k: x[k] for k in ("task", "label", "prompt", "reply")} for x in found["examples"]],
            caption="Some prompts and replies, those that go against what should become first.",
        )
    tokens = ", ".join(repr(text) for text in first["strings"])
    report.text(
        f"Refusal score: log-odds that the next token is one of {len(first['ids'])} that refusals "
        f"begin with, found on {first['n'][0]} refused and {first['n'][1]} answered rows. They "
        f"hold {first['coverage']:.2f} of the next token's probability on refused rows, "
        f"{first['spill']:.2f} on answered ones. On the other rows the sign of the score agrees "
        f"with the judged text in {estimate(first['sign'])}, AUC {estimate(first['auc'])}."
    )
    report.table([{"tokens": tokens}], caption="First tokens of refusals, the most telling first.")


def separation(report: Report, results: Results) -> None:
    """Where classes part."""
    found = results["separation"]
    report.section("2. Where refused and answered prompts part")
    report.text(
        "At the last token of the prompt, in the full dimension; no picture of two dimensions is "
        "used. Silhouettes are small even where a probe is right on every row: they weigh all "
        "dimensions alike."
    )
    report.figure(
        plots.layer_lines(
            {name: bare(values) for name, values in found["silhouettes"].items()},
            x_title="layer",
            y_title="silhouette",
        ),
        "silhouettes",
        f"Mean silhouette of {found['n']} rows, by task, and by what became of them within a task.",
    )
    probes = found["probes"]
    lines = {name: (x["auc"], x["low"], x["high"]) for name, x in probes.items()}
    shuffled = probes["refused / answered"]["shuffled"]
    lines["shuffled labels, 97.5 %"] = bare(shuffled)
    report.figure(
        plots.layer_lines(
            lines,
            x_title="layer",
            y_title="AUC",
            baseline=0.5,
            baseline_label="chance",
            controls=["shuffled labels, 97.5 %"],
        ),
        "probes",
        "Logistic probes on held-out base texts. The same probe asked for the topic of rows that "
        "are all answered tells how much of it reads what a text is about.",
    )
    report.table(
        [
            {
                "probe": name,
                "first layer with AUC 0.95": next(
                    (layer for layer, value in enumerate(x["auc"]) if value >= 0.95), None
                ),
                "best AUC": max(x["auc"]),
                "rows fitted": x["n"][0],
                "rows judged": x["n"][1],
            }
            for name, x in probes.items()
        ]
    )


def directions(report: Report, results: Results) -> None:
    """Selection, effects and geometry of directions."""
    report.section("3. Directions")
    for kind in SELECTED:
        found = results[f"selection_{kind}"]
        if "skipped" in found:
            report.text(f"{kind}: {found['skipped']}.")
            continue
        counts = ", ".join(f"{count} by {rule}" for rule, count in found["rejections"].items())
        place = place_of(found) or []
        chosen = "position {}, layer {}".format(*place)
        if not found["best"]:
            chosen = (
                f"none passes; taken is the one of least KL that bypasses and induces, {chosen}"
            )
        report.text(
            f"**{kind}**: {len(found['rows'])} candidates of {found['classes'][0]} and "
            f"{found['classes'][1]} find rows, scored on {found['n'][0]} and {found['n'][1]} "
            f"select rows (plain scores {found['harmful']:.2f} and {found['harmless']:.2f}); "
            f"rejected {counts or 'none'}. Chosen: {chosen}."
        )
        rows = [row for row in found["rows"] if row["rejected"] not in ("zero", "nan")]
        rows.sort(key=lambda row: row["bypass"] - row["induce"])
        columns = ("position", "layer", "bypass", "induce", "kl", "reason")
        report.table(
            [{name: row[name] or ("kept" if name == "reason" else row[name]) for name in columns}
             for row in rows[:8]],
            caption="The strongest candidates, by bypass - induce. bypass: score of rows to be "
            "refused with it ablated everywhere; induce: of rows to be answered with it added; "
            "KL there of the ablation.",
        )  # fmt: skip
    cosmic = results["cosmic"]
    if cosmic.get("best"):
        report.text(
            f"COSMIC, without tokens: position {cosmic['best'][0]}, layer {cosmic['best'][1]} "
            f"({cosmic['method']})."
        )
    _effects(report, results["directions"])
    _geometry(report, results["geometry"])


def _effects(report: Report, found: Result) -> None:
    rows: list[Result] = []
    seen: list[Result] = []
    for kind, effects in found.items():
        if kind in ("n", "plain") or effects in seen:  # where all is refused, two kinds are one
            continue
        seen.append(effects)
        for what, sides in effects.items():
            rows.append(
                {"direction": kind, "edit": what}
                | {
                    name: f"{estimate(x['value'])} (random {listed(x['random'])})"
                    for name, x in sides.items()
                }
            )
    plain = {name: str(estimate(x)) for name, x in found["plain"].items()}
    report.table(
        [{"direction": "none", "edit": "plain"} | plain, *rows],
        caption="Mean refusal score (nats) of test rows with a direction ablated everywhere, or "
        "added once at its layer; random directions of the same length in brackets. n = "
        + ", ".join(f"{n} {name}" for name, n in found["n"].items())
        + ".",
    )


def _geometry(report: Report, found: Result) -> None:
    names, layer = found["names"], found["layer"]
    report.section("Are they one direction?", level=3)
    if "cosines" in found:
        cosines = np.array(found["cosines"])
        report.table(
            [
                {"direction": name}
                | {other: float(cosines[i, j, layer]) for j, other in enumerate(names)}
                for i, name in enumerate(names)
            ],
            caption=f"Cosines at position {found['position']}, layer {layer}.",
        )
        first = names.index(names[0])
        lines = {
            f"{name} / {names[0]}": bare(cosines[i, first])
            for i, name in enumerate(names)
            if i != first
        }
        ceiling = np.mean(found["ceiling"][names[0]], 0)
        lines[f"halves of {names[0]}"] = bare(ceiling)
        lines["shuffled labels"] = bare(np.mean(found["floor"], 0))
        report.figure(
            plots.layer_lines(
                lines,
                x_title="layer",
                y_title="cosine",
                baseline=0.0,
                baseline_label="",
                controls=[f"halves of {names[0]}", "shuffled labels"],
            ),
            "cosines",
            "Cosine with the harmful-harmless direction; grey: two halves of its own rows (the "
            "ceiling) and shuffled labels (the floor).",
        )
    if between := found.get("independence"):
        rows = [
            {"what": name, "mean squared change of the cosine": estimate(x)}
            for name, x in between.items()
            if name != "n"
        ]
        report.table(rows, caption="Representational independence; 0 is independent.")
    cone = found.get("cone", {})
    if "ablated" in cone:
        report.text(
            f"Of the cone the two span, {len(cone['ablated'])} random vectors were ablated on "
            f"{cone['n']} refused rows: mean score {cone['plain']:.2f} becomes "
            f"{spread(cone['ablated'])}."
        )


def heads(report: Report, results: Results) -> None:
    """Carriers, necessary heads, triggers, and what passes between."""
    report.section("4. Heads")
    report.text(
        "Pairs of a refused and an answered prompt of one task and equal length. Direct "
        "attribution finds what writes the refusal, ablation what it cannot do without, and "
        "interchange what triggers it; they need not agree. Values are fractions of the gap in "
        "logit difference (first tokens of refusals against first tokens of answers)."
    )
    for side in SIDES:
        found = results[f"heads_{side}".replace(" ", "_")]
        report.section(side.capitalize(), level=3)
        if "skipped" in found:
            report.text(f"Left out: {found['skipped']}.")
            continue
        report.table(
            [
                {
                    "measure": name,
                    "first heads (value)": " ".join(
                        f"{row['label']} ({row['value']:+.2f})" for row in x["top"][:6]
                    ),
                    "same top 10 in resampled pairs": x["stability"],
                    "heads beyond permuted labels": x.get("beyond"),
                }
                for name, x in found["measures"].items()
            ]
            + [
                {
                    "measure": "any change (Ships)",
                    "first heads (value)": " ".join(found["ships"]["top"][:6]),
                    "same top 10 in resampled pairs": None,
                    "heads beyond permuted labels": None,
                }
            ],
            caption=f"n = {found['n']} find pairs, gap {found['gap']:.2f} logits. Permuted: which "
            "prompt of a pair is refused, corrected for the number of heads.",
        )
        report.table(
            [{"measures": " / ".join(x["pair"]), "Jaccard of top 10": x["jaccard"]}
             for x in found["jaccard"]],
            caption="Do the measures name the same heads?",
        )  # fmt: skip
        values = found["measures"]["triggers (necessity)"]["values"]
        report.figure(
            plots.head_grid(values, title=f"interchange, necessity: {side}"),
            f"heads_{side.replace(' ', '_')}",
            f"What each head's exchange takes from the gap, {side}.",
        )
        _groups(report, results[f"groups_{side}".replace(" ", "_")])
        _passing(report, results[f"paths_{side}".replace(" ", "_")])
    _flips(report, results["flips"])


def _groups(report: Report, found: Result) -> None:
    if "skipped" in found:
        return
    report.table(
        [
            {
                "heads of": name,
                "heads": " ".join(x["heads"]),
                "necessity": estimate(x["necessity"]),
                "random, necessity": null(x["necessity_null"]),
                "sufficiency": estimate(x["sufficiency"]),
                "random, sufficiency": null(x["sufficiency_null"]),
            }
            for name, x in found["sets"].items()
        ],
        caption=f"The first four of each measure exchanged together, on {found['n']} test pairs, "
        "against as many random heads of the same layers.",
    )


def _passing(report: Report, found: Result) -> None:
    if "skipped" in found:
        return
    paths = ", ".join(f"{x['label']} {x['value']:+.3f}" for x in found["paths"]["top"][:6])
    report.text(
        f"Path patching of every head into the queries, keys and values of the carriers "
        f"{' '.join(found['carriers'])} ({found['n']} test pairs): {paths}. Of the triggers: "
        + ", ".join(
            f"{head} {value:+.3f}"
            for head, value in zip(found["triggers"], found["of triggers"], strict=True)
        )
        + f". First four against random heads of the same layers: {null(found['path_null'])}."
    )
    cascade = found.get("cascade")
    if isinstance(cascade, list):
        report.table(
            [
                {
                    "carrier": row["head"],
                    "change of what it writes, %": row["change"],
                    "random gate, %": null(row["null"]),
                }
                for row in cascade
            ],
            caption=f"Cascade: {found['triggers'][0]} switched off.",
        )
    group = found["sahara"]
    report.text(
        f"Group that moves the last states most (greedy, from the first of Ships): "
        f"{' '.join(group['heads'])}, {group['curve'][-1]:.3f} radians; random groups, not "
        f"searched for, {null(group['null'])}."
    )


def _flips(report: Report, found: Result) -> None:
    if not found:
        return
    report.table(
        [
            {
                "test rows": name,
                "heads zeroed": " ".join(x["heads"]),
                "texts that flip": estimate(x["rate"]),
                "random heads": null(x["null"]),
                "after": ", ".join(f"{k} {label}" for label, k in x["after"].items() if k),
            }
            for name, x in found.items()
        ],
        caption="Texts with the triggers at zero in the prompt and in the text.",
    )  # fmt: skip
