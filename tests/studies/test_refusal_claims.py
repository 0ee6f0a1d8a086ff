"""The verdicts of the refusal study: every claim seen holding, in part and failing."""

from copy import deepcopy
from typing import Any

import pytest

from interp.core.statistics import share_estimate
from interp.studies.refusal.report.claims import claims
from interp.studies.refusal.steps.carriers import FROZEN
from interp.studies.refusal.steps.heads import SIDES
from interp.studies.steps import plain

ONE, OWN = "One direction mediates refusal", "Over-refusal has a direction of its own"
NAMED, FEW = "Attribution and interchange name different heads", "A few heads trigger refusal"
SHARED, TASKS = "Over-refusals are made by the heads of proper", "Tasks separate more than"
REMOVED, UNBARRED = "Task constellations remove 73%", "They keep proper refusals where no task"
OTHER, NEURONS = "Other steering does as well", "GLU neurons along the refusal direction"
PROPER, OVER = (f"_{side}".replace(" ", "_") for side in SIDES)


def est(mean: float, half: float = 0.05, n: int = 24) -> dict[str, Any]:
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def nul(mean: float = 0.0) -> dict[str, Any]:
    return {"selected": 0.5, "mean": mean, "low": mean - 0.1, "high": mean + 0.1, "share": 0.05,
            "draws": 20}  # fmt: skip


def method(name: str, null: bool = False, **changed: Any) -> dict[str, Any]:
    """200 of 200 over-refusals removed and 200 of 200 proper refusals retained, by answers."""
    every = plain(share_estimate(200, 200))
    return {
        "name": name, "null": null, "of": "", "reduction": every, "retained": every,
        "retained_reached": every, "benign": {"difference": est(0.5)},
        "answered": {"before": est(0.5), "after": est(1.0)},
    } | changed  # fmt: skip


def heads(carriers: str, triggers: str, jaccard: float, stability: float) -> dict[str, Any]:
    names = ("carries (direct attribution)", "triggers (necessity)")
    tops = [[{"label": label} for label in text.split()] for text in (carriers, triggers)]
    return {
        "measures": {
            name: {"top": top, "stability": stability}
            for name, top in zip(names, tops, strict=True)
        },
        "jaccard": [{"pair": list(names), "jaccard": jaccard}],
    }


def group(mean: float, other: float | None = None) -> dict[str, Any]:
    def one(value: float) -> dict[str, Any]:
        return {"heads": ["L2H1"], "necessity": est(value), "sufficiency": est(0.5),
                "necessity_null": nul()}  # fmt: skip

    sets = {"triggers (necessity)": one(mean)}
    return {"sets": sets if other is None else sets | {"the other side's triggers": one(other)}}


def everything_holds() -> dict[str, Any]:
    def effect(value: float, random: float) -> dict[str, Any]:
        return {"value": est(value), "random": [random] * 20}

    rows = [
        {"position": -1, "layer": k, "bypass": -2.0, "induce": 2.0, "kl": 0.05, "rejected": ""}
        for k in range(10)
    ]
    return {
        "selection_harmful-harmless": {"best": [-1, 5], "rows": rows},
        "directions": {
            "plain": {"properly refused": est(6.0), "answered": est(-6.0)},
            "harmful-harmless": {
                "ablated": {"properly refused": effect(-5.0, 5.0)},
                "added": {"answered": effect(4.0, -6.0)},
            },
            "over-refusal": {"ablated": {"properly refused": effect(5.0, 5.0)}},
        },
        "rivals": {
            "kind": "harmful-harmless", "equal": False,
            "own": {"ablated": {"properly refused": est(-5.0)}, "added": {"answered": est(4.0)}},
            "rivals": [
                {"name": name, "cosines": [0.1],
                 "ablated": {"properly refused": {"apart": est(-4.0)}},
                 "added": {"answered": {"apart": est(3.0)}}}
                for name in ("unembedding", "shuffled labels")
            ],
        },
        "one_effect": {
            "groups": ["a", "b"], "cosines": [[1, 0.5], [0.5, 1]],
            "reach": [[0.9, 0.8], [0.8, 0.9]],
            "random": [0.0, 0.2],
            "others": {x: {"share": 0.9, "drop": est(4.0), "beyond": est(0.4)} for x in "ab"},
        },
        "carriers": {"left_out": {}, "sides": {
            side: {"n": 12, "sparse": [{"largest": est(0.5)}] * 4,
                   "frozen": dict(zip(FROZEN, map(est, (0.97, 0.4, 0.6, 0.1)), strict=True))}
            for side in ("added", "subtracted")
        }},
        "geometry": {
            "names": ["harmful-harmless", "over-refusal"], "position": -1, "layer": 1,
            "cosine": est(0.5), "floor": [[0.0, 0.1]] * 5,
            "ceiling": {kind: [[0.9, 0.9]] * 5 for kind in ("harmful-harmless", "over-refusal")},
        },
        f"heads{PROPER}": heads("L1H1 L1H2", "L0H0 L0H1", 0.1, 0.8),
        f"heads{OVER}": heads("L1H1 L1H2", "L0H0 L0H1", 0.1, 0.8),
        f"groups{PROPER}": group(0.8),
        f"groups{OVER}": group(0.8, 0.7),
        "flips": {SIDES[0]: {"rate": est(0.8), "null": nul()}},
        "separation": {
            "silhouettes": {"tasks": [0.1, 0.5], "refused / answered, a": [0.0, 0.1],
                            "refused / answered, b": [0.0, 0.2]}
        },
        "method_1": method("task constellations"),
        "method_2": method("task constellations, every task"),
        "method_3": method("add - over-refusal"),
        "method_4": method("random direction 1", True, reduction=est(0.0)),
        "neurons": {"chosen": {"n": 9},
                    "test": {SIDES[0]: {"null": nul(), "flipped": est(0.8)}}},
    }  # fmt: skip


def at(path: str, value: Any) -> tuple[tuple[str, ...], Any]:
    return tuple(path.split("/")), value


HH = "directions/harmful-harmless"
FIRST = f"{HH}/ablated/properly refused/value"
BEYOND = "The direction does more than write"
EQUALLED = [
    {"name": "unembedding", "cosines": [0.8],
     "ablated": {"properly refused": {"apart": est(0.0)}},
     "added": {"answered": {"apart": est(3.0)}}}
]  # fmt: skip
"""Rivals of which one, ablated, does as much."""
GATED = {"retained_reached": None}
ALL_OF_32 = plain(share_estimate(32, 32))
LOOPS = {"answered": {"before": est(0.5), "after": est(0.6)}}

KINDS_APART = "Kinds of refusal have directions of their own and one effect"
WRITTEN = "Steering is carried by what heads write, not by where they look"
LOOK, WRITE, *_ = FROZEN

TABLE = [
    (KINDS_APART, "holds", ()),
    (KINDS_APART, "partly", (at("one_effect/cosines", [[1, 0.75], [0.75, 1]]),)),
    (KINDS_APART, "partly", (at("one_effect/others/b/beyond", est(0.0)),)),
    (KINDS_APART, "partly", (at("one_effect/random", [0.0, 4.0]),)),
    (KINDS_APART, "does not hold", (
        at("one_effect/cosines", [[1, 0.75], [0.75, 1]]),
        at("one_effect/others/a/beyond", est(-0.4)),
    )),
    (WRITTEN, "holds", ()),
    (WRITTEN, "partly", (at(f"carriers/sides/added/frozen/{LOOK}", est(0.92)),)),
    (WRITTEN, "partly", (at(f"carriers/sides/subtracted/frozen/{WRITE}", est(0.97)),)),
    (WRITTEN, "does not hold", (
        at(f"carriers/sides/added/frozen/{LOOK}", est(0.92)),
        at(f"carriers/sides/added/frozen/{WRITE}", est(0.9)),
    )),
    (ONE, "holds", ()),
    (ONE, "partly", (at(FIRST, est(5.0)),)),
    (ONE, "partly", (at(f"{HH}/added/answered/value", est(-6.0)),)),
    (ONE, "partly", (at(f"{HH}/ablated/properly refused/random", [5.0, -5.5]),)),
    (ONE, "partly", (at("selection_harmful-harmless/best", None),)),
    (ONE, "does not hold", (at(FIRST, est(5.0)), at(f"{HH}/added/answered/value", est(-6.0)))),
    (OWN, "holds", ()),
    (OWN, "partly", (at("geometry/cosine", est(0.5, half=0.4)),)),
    (OWN, "partly", (at("directions/over-refusal/ablated/properly refused/value", est(-5.0)),)),
    (OWN, "does not hold", (
        at("geometry/cosine", est(0.9)),
        at("directions/over-refusal/ablated/properly refused/value", est(-5.0)),
    )),
    (NAMED, "holds", ()),
    (NAMED, "partly", (at(f"heads{OVER}", heads("L0H0 L1H2", "L0H0 L0H1", 0.1, 0.8)),)),
    (NAMED, "partly", (at(f"heads{OVER}", heads("L1H1 L1H2", "L0H0 L0H1", 0.45, 0.8)),)),
    (NAMED, "partly", (at(f"heads{PROPER}", heads("L1H1 L1H2", "L0H0 L0H1", 0.1, 0.15)),)),
    (NAMED, "holds", (at(f"heads{OVER}", {"skipped": "too few"}),)),
    (NAMED, "does not hold", tuple(
        at(f"heads{side}", heads("L0H0 L1H2", "L0H0 L0H1", 0.6, 0.8)) for side in (PROPER, OVER)
    )),
    (FEW, "holds", ()),
    (FEW, "partly", (at(f"flips/{SIDES[0]}/rate", plain(share_estimate(0, 12))),)),
    (FEW, "partly", (at("flips", {}),)),
    (FEW, "partly", (at(f"groups{PROPER}", group(0.3)),)),
    (FEW, "does not hold", (at(f"groups{PROPER}", group(0.1)),)),
    (SHARED, "holds", ()),
    (SHARED, "partly", (at(f"groups{OVER}", group(0.8, 0.42)),)),
    (SHARED, "does not hold", (at(f"groups{OVER}", group(0.8, 0.05)),)),
    (TASKS, "holds", ()),
    (TASKS, "partly", (at("separation/silhouettes/refused / answered, a", [0.6, 0.1]),)),
    (TASKS, "does not hold", (at("separation/silhouettes/tasks", [0.05, 0.05]),)),
    (REMOVED, "holds", ()),
    # 32 of 32 retained do not show 95 %; nor do rows that a gate left alone, however many.
    (REMOVED, "partly", (at("method_1/retained_reached", ALL_OF_32),)),
    (REMOVED, "partly", (at("method_1/retained_reached", None),)),
    (REMOVED, "partly", (at("method_1/reduction", est(0.75)),)),
    (REMOVED, "partly", (at("method_1/answered", LOOPS["answered"]),)),
    (REMOVED, "does not hold", (at("method_1/reduction", est(0.6)),)),
    (REMOVED, "does not hold", (at("method_1/retained", None),)),
    (REMOVED, "does not hold", (at("method_1/retained", est(0.9)),)),
    (UNBARRED, "holds", ()),
    (UNBARRED, "not tested", (at("method_2/retained_reached", None),)),
    (UNBARRED, "partly", (at("method_2/retained_reached", ALL_OF_32),)),
    (UNBARRED, "does not hold", (at("method_2/retained_reached", est(0.2)),)),
    (OTHER, "holds", ()),
    (OTHER, "partly", (at("method_3/retained_reached", ALL_OF_32),)),
    (OTHER, "partly", (at("method_3/retained_reached", None),)),
    (OTHER, "partly", (at("method_4/reduction", est(0.9)),)),
    (OTHER, "does not hold", (at("method_3/answered", LOOPS["answered"]),)),
    (OTHER, "does not hold", (at("method_3/reduction", est(0.5)),)),
    (OTHER, "does not hold", (at("method_3/reduction", None),)),
    (BEYOND, "holds", ()),
    (BEYOND, "partly", (at("rivals/rivals", EQUALLED),)),
    (BEYOND, "does not hold", (at("rivals/equal", True),)),
    (NEURONS, "holds", ()),
    (NEURONS, "partly", (at(f"neurons/test/{SIDES[0]}/flipped", est(0.3)),)),
    (NEURONS, "does not hold", (at(f"neurons/test/{SIDES[0]}/flipped", est(0.1)),)),
]  # fmt: skip


def changed(*changes: tuple[tuple[str, ...], Any]) -> dict[str, Any]:
    results = deepcopy(everything_holds())
    for path, value in changes:
        place = results
        # A name may hold a slash: of a silhouette.
        keys = [*path[:2], "/".join(path[2:])] if path[0] == "separation" else path
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
    return results


@pytest.mark.parametrize(("claim", "verdict", "changes"), TABLE)
def test_a_claim_is_as_strict_as_it_says(claim, verdict, changes):
    rows = {row["claim"]: row for row in claims(changed(*changes))}
    (row,) = (row for name, row in rows.items() if name.startswith(claim))
    assert row["here"] == verdict, row["evidence"]
    assert len(rows) == 13


def test_every_claim_is_in_the_table_with_each_verdict():
    wanted = {"holds", "partly", "does not hold"}
    for row in claims(everything_holds()):
        verdicts = {said for claim, said, _ in TABLE if row["claim"].startswith(claim)}
        assert verdicts >= wanted, row["claim"]
        assert row["here"] == "holds"


def test_the_evidence_says_what_was_not_tested():
    rows = claims(changed(at("method_1/retained_reached", None)))
    (row,) = (row for row in rows if row["claim"].startswith(REMOVED))
    assert "none steered: not tested" in row["evidence"]
    rows = claims(changed(at("selection_harmful-harmless/best", None)))
    assert "no candidate passes the published rule (taken: layer 0 of 10)" in rows[0]["evidence"]


def test_steps_that_were_left_out_make_no_claim():
    bare = {f"{step}{side}": {"skipped": "x"} for step in ("heads", "groups")
            for side in (PROPER, OVER)}  # fmt: skip
    results = everything_holds() | bare
    results["geometry"] = {"names": ["harmful-harmless"], "layer": 1, "floor": [[0.0]]}
    results["neurons"] = {"skipped": "no gated MLP"}
    results["one_effect"], results["carriers"] = (
        {"skipped": "1 group"},
        {"sides": {}, "left_out": {"added": "2 rows"}},
    )
    results["separation"] = {"silhouettes": {"tasks": [0.5]}}
    del results["method_1"], results["method_2"]
    assert [row["claim"][:9] for row in claims(results)] == [ONE[:9], BEYOND[:9], OTHER[:9]]
