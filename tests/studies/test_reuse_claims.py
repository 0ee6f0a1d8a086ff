"""Claims of the reuse study on planted results: each holds, holds partly, and fails."""

import numpy as np
import pytest

from interp.core.errors import InterpError
from interp.core.nulls import paired_p
from interp.core.statistics import share_estimate
from interp.plots import static
from interp.studies.reuse.report.claims import claims
from interp.studies.reuse.report.report import overlap_matrix, repair_bars
from interp.studies.reuse.steps.circuits import STAGES, step_of
from interp.studies.reuse.steps.overlap import MEASURES
from interp.studies.reuse.tasks import BY_NAME, IOI, OBJECTS_TRAINED
from interp.studies.steps import plain

SKILL = OBJECTS_TRAINED.name
NAMES = (
    "variants", "specific", "objects", "skill", "needed", "gatherers", "both", "negative",
    "inhibition", "suppressor",
)  # fmt: skip
CONTROLS = ("greater_than", "capitals")


def share(hits, n=100):
    return plain(share_estimate(hits, n))


def overlap(one, other, value=0.5, random=0.001, beyond=0.2, reach=0.1):
    """A pair: how strong random heads are, and by how much it is beyond every control."""
    rows = [
        {"circuit": name, "control": control, "shares": value - beyond, "value": beyond,
         "low": beyond - reach, "high": beyond + reach}
        for name in (one, other) for control in CONTROLS
        if not {*CONTROLS} & {one, other}
    ]  # fmt: skip
    x = {"value": value, "low": 0.3, "high": 0.7, "null": {"mean": 0.1, "share": random}}
    return {"pair": [one, other], **{name: x | {"controls": rows} for name in MEASURES}}


def circuit(heads):
    """A circuit of two layers of two heads, on four prompts; heads of its inhibition stage."""
    values = [heads.get(f"L{i // 2}H{i % 2}", 0.0) for i in range(4)]
    stage = {"heads": list(heads), "values": values, "effects": [values] * 4, "stderr": values}
    return {"n_heads": 2, "stages": dict.fromkeys(STAGES, stage)}


def told(fixed, broken=0, random=(20, 30)):
    """A row of the repair: 40 of 100 right before; the least and most right of 30 random heads."""
    changes = np.array([1] * fixed + [-1] * broken + [0] * (100 - fixed - broken))
    null = np.linspace(*random, 30) / 100
    right = share(40 + fixed - broken) | {
        "fixed": fixed, "broken": broken, "p_paired": paired_p(changes), "null": null.tolist(),
        "share": float((1 + (null >= (40 + fixed - broken) / 100).sum()) / 31),
    }  # fmt: skip
    return {"right": right, "top": share(30)}


def planted():
    """Results in which every claim holds."""
    names = [e.name for e in BY_NAME.values() if e.name != "ioi, trained model"]
    found = {step_of(BY_NAME[name]): circuit({"L1H0": 0.4, "L0H1": -0.2}) for name in BY_NAME}
    found[step_of(BY_NAME["ioi, trained model"])] = circuit({"L1H1": 0.4})
    pairs = [overlap(one, other) for i, one in enumerate(names) for other in names[i + 1 :]]
    lowers = {"side": "wrong", "attention": 0.7, "adds": share(50) | {"mean": -2.0}}
    raises = {"side": "answer", "attention": 0.6, "adds": share(50) | {"mean": 1.0}}
    roles = {
        "L1H0": lowers | {"role": "suppressor"},
        "L1H1": lowers | {"role": "suppressor", "adds": lowers["adds"] | {"mean": -1.0}},
        "L0H0": raises | {"role": "mover"},
        "L0H1": None,
    }
    sets = {"both": told(50), "inhibition": told(50), "L1H0": told(55), "L1H1": told(50)}
    sets |= {"L0H0": told(0, 5), "L0H1": told(3, 3)}
    return found | {
        "overlap": {"pairs": pairs, "empty": []},
        "labels": {SKILL: {"labels": {"L1H0": ["content gatherer"]}}},
        "reused": {
            SKILL: {
                "none": share(100),
                "sets": {
                    name: {**share(50), "null": [1.0] * 30, "share": 0.03}
                    for name in (IOI.name, SKILL)
                },
            }
        },
        "repair": {
            "heads": {"inhibition": ["L0H1"], "negative mover": ["L1H0"], "movers": ["L0H0"]},
            "roles": roles,
            "none": {"right": share(40), "top": share(20)},
            "sets": sets,
        },
    }


def repairs(**rows):
    def change(x):
        x["repair"]["sets"] |= rows

    return change


def pair(one, other, **numbers):
    def change(x):
        rows = x["overlap"]["pairs"]
        at = next(i for i, row in enumerate(rows) if row["pair"] == [one, other])
        rows[at] = overlap(one, other, **numbers)

    return change


def one_control(one, other, circuit, control, value, low):
    """One difference to a control: the others stay as they are."""

    def change(x):
        pair(one, other)(x)
        row = next(row for row in x["overlap"]["pairs"] if row["pair"] == [one, other])
        for each in row["matched"]["controls"]:
            if (each["circuit"], each["control"]) == (circuit, control):
                each |= {"value": value, "low": low, "high": 0.5}

    return change


def several(*changes):
    def change(x):
        for each in changes:
            each(x)

    return change


def gathered(there):
    """IOI's stage of the trained model has these heads; both of the skill's are gatherers."""

    def change(x):
        x[step_of(OBJECTS_TRAINED)] = circuit({"L1H0": 0.4, "L0H0": 0.2})
        x["labels"][SKILL]["labels"] = {h: ["content gatherer"] for h in ("L1H0", "L0H0")}
        x[step_of(BY_NAME["ioi, trained model"])] = circuit(dict.fromkeys(there, 0.3))

    return change


def needed(x):
    x["reused"][SKILL]["sets"][IOI.name]["share"] = 0.4


VARIANTS = ("ioi, other wording", "ioi, three names", "ioi, swapped roles")
BEYOND_RANDOM = (10, 95)
"""Random heads as good as the row: fixes are then not those of these heads."""

CASES = [
    ("variants", pair("ioi", VARIANTS[0], random=0.2), "partly"),
    ("variants", several(*(pair("ioi", v, random=0.2) for v in VARIANTS)), "does not hold"),
    ("specific", pair("ioi", VARIANTS[1], beyond=0.05), "partly"),
    ("specific", pair("ioi", VARIANTS[1], beyond=-0.05), "does not hold"),
    # As measured: beyond random heads, and by the values beyond every control, but not apart.
    ("skill", pair("ioi", SKILL, value=0.44, random=0.01, beyond=0.11, reach=0.2), "partly"),
    ("skill", one_control("ioi", SKILL, SKILL, "capitals", 0.11, -0.1), "partly"),
    ("skill", one_control("ioi", SKILL, IOI.name, "greater_than", 0.11, -0.1), "partly"),
    ("skill", one_control("ioi", SKILL, SKILL, "capitals", -0.02, -0.2), "does not hold"),
    ("skill", pair("ioi", SKILL, random=0.2), "does not hold"),
    ("objects", pair("ioi", "colored_objects", beyond=0.05), "partly"),
    ("objects", pair("ioi", "colored_objects", beyond=-0.1), "does not hold"),
    ("needed", needed, "does not hold"),
    ("gatherers", gathered(["L1H0"]), "partly"),
    ("gatherers", gathered(["L1H0", "L0H0"]), "does not hold"),
    ("both", repairs(both=told(50, random=BEYOND_RANDOM)), "partly"),
    ("both", repairs(both=told(9, 9)), "does not hold"),
    ("inhibition", repairs(inhibition=told(50, random=BEYOND_RANDOM)), "partly"),
    ("inhibition", repairs(inhibition=told(0, 20)), "does not hold"),
    ("negative", repairs(L1H0=told(55, random=BEYOND_RANDOM)), "partly"),
    ("negative", repairs(L1H0=told(9, 9)), "does not hold"),
    # Another suppressor does it, or also a mover; only a mover; nobody.
    ("suppressor", repairs(L1H0=told(3, 3)), "partly"),
    ("suppressor", repairs(L0H0=told(50)), "partly"),
    ("suppressor", repairs(L0H0=told(50), L1H0=told(3, 3), L1H1=told(3, 3)), "does not hold"),
    ("suppressor", repairs(L1H0=told(3, 3), L1H1=told(3, 3)), "does not hold"),
]


def verdicts(results):
    return dict(zip(NAMES, claims(results), strict=True))


def test_every_planted_claim_holds():
    rows = verdicts(planted())
    assert {name: row["here"] for name, row in rows.items()} == dict.fromkeys(NAMES, "holds")
    assert "L1H0 0.95" in rows["suppressor"]["evidence"]
    assert "L0H0" not in rows["suppressor"]["evidence"].split("Next best")[0]
    assert "+0.20" in rows["skill"]["evidence"]


@pytest.mark.parametrize(("name", "change", "verdict"), CASES)
def test_a_planted_failure_changes_the_verdict(name, change, verdict):
    results = planted()
    change(results)
    assert verdicts(results)[name]["here"] == verdict


def test_figures_show_every_row_and_every_pair():
    results = planted()
    axes = repair_bars(results).axes[0]
    names = [text.get_text() for text in axes.get_xticklabels()]
    assert names[:4] == ["no change", "both", "inhibition", "L1H0, suppressor"]
    assert len(names) == 7
    heights = [bar.get_height() for bar in axes.containers[0].patches]
    assert heights == pytest.approx([0.4, 0.9, 0.9, 0.95, 0.9, 0.4, 0.35])
    points = [line.get_ydata() for line in axes.lines if len(line.get_xdata()) == 30]
    assert len(points) == 6  # none beside the plain run
    axes = overlap_matrix(results).axes[0]
    tasks = [text.get_text() for text in axes.get_yticklabels()]
    grid = axes.images[0].get_array()
    assert tasks == [text.get_text() for text in axes.get_xticklabels()] == list(BY_NAME)
    assert np.isnan(np.ma.filled(grid, np.nan).diagonal()).all()
    assert grid[0, 1] == grid[1, 0] == 0.5
    assert len(axes.texts) == np.isfinite(np.ma.filled(grid, np.nan)).sum()
    with pytest.raises(InterpError, match="a row and a column"):
        static.square_map([[1.0, 0.5]], names=["a"], title="")
