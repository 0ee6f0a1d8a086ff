"""The parts of the report on behaviour, separation and directions."""

from __future__ import annotations

from typing import Any

import numpy as np

from interp.plots import static
from interp.studies.formatting import bare, estimate, spread
from interp.studies.refusal.steps.directions import COST, SELECTED, place_of
from interp.studies.report.report import Report
from interp.studies.steps import Result

Results = dict[str, Result]


def behaviour(report: Report, results: Results) -> None:
    """What becomes of every prompt."""
    found, first = results["behaviour"], results["tokens"]
    report.section("1. What the model does")
    report.text(
        f"Greedy texts of at most {found['decoding']['max_new_tokens']} tokens, judged by "
        f"`{found['judge']}`. Shares of all prompts of a kind and task, Wilson intervals; "
        "borderline replies, thoughts alone, loops, texts cut off early and judge errors are "
        "classes of their own. These texts are the baseline of everything below. Methods are "
        "compared (section 6) on all test rows, whatever became of them here; directions, heads "
        "and neurons are tried (sections 3, 4, 7) on test rows taken because they were refused, or "
        "answered, here."
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
        static.interval_lines(
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
        static.interval_lines(
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
                "none passes; taken is the largest induce - bypass of those that do both at a KL "
                f"of at most {COST} nats (if all cost more, the least KL), {chosen}"
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
    _false_refusal(report, results["selection_false-refusal"])
    cosmic = results["cosmic"]
    if cosmic.get("best"):
        report.text(
            f"COSMIC, without tokens: position {cosmic['best'][0]}, layer {cosmic['best'][1]} "
            f"({cosmic['method']})."
        )
    _effects(report, results["directions"])
    _geometry(report, results["geometry"])


def _false_refusal(report: Report, found: Result) -> None:
    if "skipped" in found:
        report.text(f"false-refusal: {found['skipped']}.")
        return
    about = (
        "**false-refusal**: the over-refusal direction less its part along the first, "
        f"{len(found['rows'])} candidates scored on {found['n'][0]} and {found['n'][1]} select "
        "rows by the rule of its paper (arXiv 2410.03415: least score of over-refused rows, KL at "
        "most 0.2). "
    )
    if not found["best"]:
        report.text(about + "None passes; the over-refusal direction's place is taken.")
        return
    row = next(x for x in found["rows"] if [x["position"], x["layer"]] == found["best"])
    report.text(
        about + "Chosen: position {}, layer {}".format(*found["best"]) + f", where ablation takes "
        f"the score from {found['harmful']:.2f} to {row['bypass']:.2f}, KL {row['kl']:.3f}."
    )


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
                    name: f"{estimate(x['value'])} (random {spread(x['random'])})"
                    for name, x in sides.items()
                }
            )
    plain = {name: str(estimate(x)) for name, x in found["plain"].items()}
    report.table(
        [{"direction": "none", "edit": "plain"} | plain, *rows],
        caption="Mean refusal score (nats) of test rows with a direction ablated everywhere, or "
        "added once at its layer; in brackets mean and 95 % range of "
        f"{_draws(found)} random directions of the same length, from a few of the rows. n = "
        + ", ".join(f"{n} {name}" for name, n in found["n"].items())
        + ".",
    )


def _draws(found: Result) -> int:
    """Random directions behind the effects of a study."""
    lists = (
        x["random"]
        for kind, effects in found.items()
        if kind not in ("n", "plain")
        for sides in effects.values()
        for x in sides.values()
    )
    return max(map(len, lists), default=0)


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
            caption=f"Cosines at position {found['position']}, layer {layer}, the place of the "
            "first, wherever the others were chosen.",
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
            static.interval_lines(
                lines,
                x_title="layer",
                y_title="cosine",
                baseline=0.0,
                baseline_label="",
                controls=[f"halves of {names[0]}", "shuffled labels"],
            ),
            "cosines",
            "Cosine with the harmful-harmless direction; grey: two halves of its own rows (the "
            "ceiling), and over-refusal directions whose labels were shuffled inside each task "
            "(the floor), mean of the draws.",
        )
    if cosine := found.get("cosine"):
        floor = [row[layer] for row in found["floor"]]
        report.text(
            f"Cosine of the refusal and the over-refusal direction there: {cosine['mean']:.3f} "
            f"[{cosine['low']:.3f}, {cosine['high']:.3f}], bootstrap over {cosine['n']} base "
            f"texts; {len(floor)} draws of shuffled over-refusal labels {spread(floor)}. A wide "
            "range of these says that the rows vary along the refusal direction whatever their "
            "label."
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
