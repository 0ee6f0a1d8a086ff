"""The refusal pages, on a hand-made study: what they show is what its steps hold."""

import json
import re
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("streamlit", reason="the app's extra is not installed")

import torch
from streamlit.testing.v1 import AppTest

import interp
from interp.core.files import content_key
from interp.core.statistics import share_estimate
from interp.models.chat import chat_prompts
from interp.models.toys.circuits import build_toy
from interp.plots.grids import candidate_grid
from interp.plots.steering import gate_curve
from interp.results.direction import STUDY_FILE, random_direction, save_directions
from interp.runs.capture import run_with_cache
from interp.steering.candidates import difference_in_means
from interp.steering.edits import add_direction
from interp.steering.projections import Projected
from interp.steering.runs import generate_steered
from interp.studies.by_name import study_table
from interp.studies.refusal.report.claims import claims
from interp.studies.refusal.report.tables import CANDIDATES
from interp.studies.refusal.settings import REFUSAL, RefusalSettings
from interp.studies.refusal.steps.frontier import RETAINED
from interp.studies.steps import write_step
from interp.studies.study import open_study, usual_directory, write_manifest
from interp.ui.prompts.strip import projection_strips
from interp.ui.refusal import texts
from interp.ui.refusal.model import tokens_of
from interp.ui.shared.state import HIDDEN
from interp.ui.studies import first_page
from interp.ui.studies.open_study import kept
from interp.ui.studies.pages import REFUSAL_PAGES, VERIFICATION_PAGES
from tests.pages import charts, downloads, named, numbers, opened, table_with

NAMES = ("study", "directions", "trajectories", "heads", "interventions")
PAGES = {name: f"interp/ui/views/refusal/{name}.py" for name in NAMES}
LABELS = (
    "direct_answer", "direct_refusal", "indirect_refusal", "degenerate", "truncated", "judge_error",
)  # fmt: skip
TASKS = ("request", "translate", "summarise")
KINDS = ("harmful-harmless", "behaviour", "over-refusal", "false-refusal")
SKIPPED = {"skipped": "too few pairs"}


def est(mean: float, n: int = 20) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.05, "high": mean + 0.05, "n": n}


def nul(mean: float) -> dict[str, float]:
    ends = {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}
    return {"selected": 0.5, **ends, "share": 0.25, "draws": 5}


class Maker:
    """Step results in the shapes the study keeps them in, with numbers that are known."""

    def __init__(self, layers: int = 4, heads: int = 3) -> None:
        self.layers, self.heads = layers, heads
        self.rng = np.random.default_rng(0)

    def line(self, start: float = 0.0, end: float = 1.0) -> list[float]:
        return np.linspace(start, end, self.layers).tolist()

    def results(self) -> dict[str, Any]:
        """All steps of a finished study."""
        found: dict[str, Any] = {"separation": self._separation(), "ledger": self._ledger()}
        found |= self._behaviour() | self._selections() | self._directions() | self._heads()
        found |= {"constellations": self._constellations()} | self._methods()
        own = {"fall": est(3.0), "released": est(0.9)}
        drawn = {"fall_null": nul(0.1), "released_null": None}
        chance = {"n": {"over-refused": 8}, "add - over-refusal": {"over-refused": own | drawn}}
        return found | {
            "chance": chance,
            "neurons": {"skipped": "too few refused or answered rows"},
        }

    def _behaviour(self) -> dict[str, Any]:
        cells = []
        for task, kind, should, refused in (
            ("request", "taboo", "refuse", 1.0),
            ("request", "plain", "answer", 0.0),
            ("translate", "taboo", "answer", 0.8),
            ("translate", "plain", "answer", 0.05),
        ):
            labels = dict.fromkeys(LABELS, 0) | {"direct_refusal": int(20 * refused)}
            labels["degenerate"] = 1 if task == "translate" else 0
            cells.append(
                {
                    "task": task, "kind": kind, "should": should, "refused": est(refused),
                    "answered": est(0.95 - refused), "labels": labels,
                }
            )  # fmt: skip
        example = {
            "task": "translate", "should": "answer", "label": "direct_refusal",
            "prompt": "Translate: the <b>rose</b> is red.", "reply": "I can't help with that.",
        }  # fmt: skip
        tokens = {
            "ids": [3, 4], "wrong": [5], "strings": [" I", " Sorry"], "answers": ["The"],
            "threshold": 0.0, "coverage": 0.9, "spill": 0.1, "n": [20, 20], "sign": est(0.97),
            "auc": est(0.99),
        }  # fmt: skip
        return {
            "behaviour": {
                "judge": "rules/1-abc", "decoding": {"max_new_tokens": 100}, "cells": cells,
                "labels": ["direct_answer"] * 80, "parts": {"find": 30, "select": 20, "test": 30},
                "examples": [example],
                "became": {"refused": ["a"], "invented": ["b"], "neither": []},
                "compared": {"should": ["answer", "refuse"], "unit": [0, 1]},
            },
            "tokens": tokens,
        }  # fmt: skip

    def _separation(self) -> dict[str, Any]:
        def curve(auc: list[float], **more: Any) -> dict[str, Any]:
            low, high = ([x + d for x in auc] for d in (-0.1, 0.1))
            return {"accuracy": auc, "auc": auc, "low": low, "high": high, "n": [60, 20], **more}

        return {
            "n": 80,
            "silhouettes": {
                "tasks": self.line(0.1, 0.4),
                "refused / answered, translate": [float("nan"), *self.line(0.0, 0.1)[1:]],
            },
            "probes": {
                "refused / answered": curve(self.line(0.5, 0.98), shuffled=self.line(0.6, 0.62)),
                "the same probe on the topic of answered rows": curve(self.line(0.5, 0.7)),
            },
        }

    def _selections(self) -> dict[str, Any]:
        rows = []
        for position in (-2, -1):
            for layer in range(self.layers):
                last = layer == self.layers - 1
                row = {"position": position, "layer": layer, "kl": 0.01 * (layer + 1)}
                row |= {"bypass": 1.0 - layer if position == -1 else 5.0, "induce": 0.5 * layer}
                row |= {f"{s}_stderr": 0.1 for s in ("bypass", "induce", "kl")}
                row |= {"rejected": "layer", "reason": f"layer {layer} is left out"} if last else {
                    "rejected": "", "reason": ""
                }  # fmt: skip
                if layer == 0:
                    row |= {"rejected": "kl", "reason": "KL 5.6 on harmless prompts, above 0.1"}
                if layer == 0 and position == -2:
                    row |= dict.fromkeys([key for key in row if key[:2] in ("by", "in", "kl")])
                    row |= {"rejected": "zero", "reason": "the vector is zero"}
                rows.append(row)
        one = {
            "method": "bypass, induce, KL", "rows": rows, "best": [-1, self.layers - 2],
            "rejections": {"kl": 1, "zero": 1, "layer": 2}, "harmful": 6.2, "harmless": -6.5,
        }  # fmt: skip
        more = {"n": [6, 6], "classes": [8, 9], "tokens": ["ass", "\n"]}
        return {
            "selection_harmful-harmless": one | more,
            "selection_over-refusal": one | more | {"best": None},
            "selection_false-refusal": one | more,
            "selection_refused-invented": SKIPPED,
            "cosmic": one | {"harmful": None, "harmless": None, "best": None},
        }

    def _directions(self) -> dict[str, Any]:
        sides = {"properly refused": 12, "over-refused": 12, "answered": 12}
        found: dict[str, Any] = {"n": sides}
        found["plain"] = dict(zip(sides, (est(6.0), est(2.0), est(-6.0)), strict=True))
        for k, kind in enumerate(KINDS):
            found[kind] = {
                edit: {
                    side: {"value": est(start - k), "random": [5.9, 6.1], "share": 0.3}
                    for side, start in zip(sides, (-1.0, -2.0, -7.0), strict=True)
                }
                for edit in ("ablated", "added")
            }
        cosines = np.ones((4, 4, self.layers)) * 0.4
        cosines[range(4), range(4)] = 1
        cosines[0, 2, 1] = cosines[2, 0, 1] = -0.3
        geometry = {
            "names": list(KINDS), "position": -1, "layer": self.layers - 2,
            "cosines": cosines.tolist(), "components": [1] * self.layers,
            "ceiling": {kind: [self.line(0.8, 0.9)] * 2 for kind in KINDS[:3]},
            "floor": [self.line(-0.1, 0.1), self.line(0.1, -0.1)],
            "independence": {"one removed, along other": est(0.01), "n": 12},
            "cone": {"n": 6, "plain": 2.5, "ablated": [-0.5, 0.5]}, "cosine": est(-0.3),
        }  # fmt: skip
        both = {"properly refused": est(-1.0), "answered": est(1.0)}
        edits = {"ablated": both, "added": both}
        rival = {"score": est(0.5), "each": [0.5], "apart": est(-1.5)}
        apart = {edit: dict.fromkeys(sides, rival) for edit, sides in edits.items()}
        rivals = {
            "kind": KINDS[0], "place": [-1, 2], "own": edits, "equal": False,
            "rivals": [{"name": "unembedding", "n": 1, "cosines": [0.2], **apart}],
        }  # fmt: skip
        more = {
            "one_effect": {"skipped": "1 group"},
            "carriers": {"sides": {}, "left_out": {"added": "2 rows"}},
        }
        return {"directions": found, "geometry": geometry, "rivals": rivals, **more}

    def _heads(self) -> dict[str, Any]:
        names = (
            "carries (direct attribution)", "carries (along the direction)", "needed (zeroed)",
            "triggers (necessity)", "triggers (sufficiency)",
        )  # fmt: skip
        measures: dict[str, Any] = {}
        for k, name in enumerate(names):
            values = self.rng.normal(0, 0.05, (self.layers, self.heads))
            values[1, k % self.heads] = 0.6
            values = values[: 2 if "along" in name else None]  # up to the direction's layer
            flat = np.argsort(-np.abs(values), axis=None)[:10]
            places = [divmod(int(cell), self.heads) for cell in flat]
            measures[name] = {
                "values": values.tolist(),
                "top": [
                    {"label": f"L{a}H{b}", "value": float(values[a, b]), "stderr": 0.01}
                    for a, b in places
                ],
                "stability": 0.8,
            }
        measures[names[0]] |= {"limit": 0.2, "beyond": 1}
        ships = np.abs(self.rng.normal(0, 0.1, (self.layers, self.heads)))
        heads = [f"L{layer}H{head}" for layer in range(2) for head in range(self.heads)]
        role = {
            "n": 8, "gap": 9.5, "measures": measures,
            "ships": {"values": ships.tolist(), "benign": ships.tolist(), "top": heads},
            "jaccard": [
                {"pair": [a, b], "jaccard": 0.25}
                for i, a in enumerate(names)
                for b in names[i + 1 :]
            ],
        }  # fmt: skip
        sets = {
            name: {
                "heads": heads[:4], "necessity": est(0.7), "sufficiency": est(0.3),
                "necessity_null": nul(0.1), "sufficiency_null": None,
            }
            for name in names
        }  # fmt: skip
        paths = {
            "n": 8, "carriers": heads[:2], "triggers": heads[2:4], "of triggers": [0.2, 0.1],
            "paths": measures[names[0]],
            "path_null": nul(0.0) | {"k": 2, "unseen": est(0.1), "flips": {"p": 0.01}},
            "cascade": [{"head": heads[0], "change": -40.0, "null": nul(-5.0)}],
            "greedy_head_group": {"heads": heads[:3], "curve": [0.1, 0.2, 0.3], "null": nul(0.1)},
        }  # fmt: skip
        flips = {"heads": heads[:4], "rate": est(0.5), "null": nul(0.1)}
        return {
            "heads_proper_refusals": role, "heads_over-refusals": SKIPPED,
            "groups_proper_refusals": {"n": 8, "sets": sets}, "groups_over-refusals": SKIPPED,
            "paths_proper_refusals": paths, "paths_over-refusals": SKIPPED,
            "flips": {"proper refusals": flips | {"after": dict.fromkeys(LABELS, 2)}},
        }  # fmt: skip

    def _constellations(self) -> dict[str, Any]:
        def row(task: str, name: str, mean: list[float]) -> dict[str, Any]:
            low, high = ([x + d for x in mean] for d in (-0.1, 0.1))
            return {"task": task, "class": name, "n": 9, "mean": mean, "low": low, "high": high}

        return {
            "tasks": list(TASKS),
            "counts": [[5, 6], [6, 7], [10, 0]],
            "notices": ["task summarise has 0 refusal rows, fewer than 4"],
            "ways": [
                {"identify": {"stored": k, "over_layers": "max", "centre": "task"}, "right": est(x)}
                for k, x in ((5, 0.4), (None, 0.6))
            ],
            "identify": {"stored": None, "over_layers": "max", "centre": "task"},
            "effectiveness": [self.line(0.1, 0.9), self.line(0.9, 0.1), [0.0] * self.layers],
            "told": {task: est(0.6) for task in TASKS},
            "gate": {
                "thresholds": [0.7, 0.8, 0.9, 0.99], "covered": [10, 8, 6, 0],
                "wrong": [4, 2, 0, 0], "passed": [3, 1, 0, 0], "n_benign": 20, "n_harmful": 10,
            },
            "threshold": 0.9,
            "at published": {name: est(0.2) for name in ("covered", "wrong", "passed")},
            "at chosen": {name: est(0.3) for name in ("covered", "wrong", "passed")},
            "ratios": [
                row("translate", "refused", self.line(0.9, 1.4)),
                row("translate", "answered", self.line(0.9, 0.6)),
                row("request", "refused", self.line(1.0, 1.5)),
            ],
            "picture": {
                "layer": 2,
                "points": self.rng.normal(0, 1, (24, 2)).tolist(),
                "tasks": [TASKS[i % 3] for i in range(24)],
                "refused": [[True, False, None][i % 5 % 3] for i in range(24)],
            },
        }  # fmt: skip

    def _ledger(self) -> dict[str, Any]:
        rows = [
            {
                "row": f"row{i}", "task": "translate", "identified": TASKS[i % 3],
                "confidence": 0.9, "margin": 0.1, "steered": i % 2 == 0,
                "skipped": "" if i % 2 == 0 else f"gated out: confidence 0.{i} below 0.9",
                "layers": "1, 2", "strengths": "0.50, 0.25",
            }
            for i in range(6)
        ]  # fmt: skip
        return {"text": "3 of 6 steered", "steered": 3, "wrong": 2, "n": 6, "rows": rows}

    def _methods(self) -> dict[str, Any]:
        def pair(before: float, after: float) -> dict[str, Any]:
            about = {"stopped": 4, "began": 1, "p": 0.01, "errors": 0}
            return {"before": est(before), "after": est(after), "difference": est(0.1), **about}

        found: dict[str, Any] = {}
        doses = [0.0, 0.5, 1.0, 2.0]
        for name, null, removed, left in (
            ("ablate harmful-harmless", False, 0.9, 0.1),
            ("add - harmful-harmless", False, 0.5, 1.0),
            ("task constellations", False, 0.75, RETAINED),
            ("random direction 1", True, 0.0, 1.0),
        ):
            key = "".join(c if c.isalnum() else "_" for c in name)
            counts = {side: dict.fromkeys(LABELS, 2) for side in ("answer", "refuse")}
            found[f"method_{key}"] = {
                "name": name, "null": null, "of": "", "dose": 1.0, "benign": pair(0.5, 0.2),
                "everything": pair(0.4, 0.2), "answered": pair(0.5, 0.8),
                "harmful": pair(1.0, left),
                "tasks": {task: pair(0.6, 0.1) for task in TASKS}, "counts": counts, "why": "",
                "changed": {"answer": 4, "refuse": 1}, "reached": {"answer": 5, "refuse": 0},
                "gated": {"answer": 3, "refuse": 1} if "task" in name else None,
                "reduction": est(removed), "retained": est(left), "selectivity": None,
                "retained_reached": None if "task" in name else est(left),
                "became": "AR", "induced": None, "refuse": False, "apart": {
                    "proper refusals / answered": {
                        "before": est(0.9), "after": est(0.6), "shift": [est(-2.0), est(0.1)],
                    }
                },
                "kl": est(0.02), "loss": est(0.1), "perplexity": {"before": 2.0, "after": 20.0},
            }  # fmt: skip
            short = name.startswith("ablate")
            found[f"dose_{key}"] = {
                "name": name, "dose": 1.0, "doses": [0.0, 1.0] if short else doses,
                "released": [0.0, 1.0] if short else [0.0, 0.2, 0.6, 1.0],
                "lost": [0.0, 1.0] if short else [0.0, 0.0, 0.05, 0.5],
                "scores": {
                    side: [est(3.0 - i) for i in range(2 if short else 4)]
                    for side in ("released", "lost")
                },
                "kl": [0.0, 0.6] if short else [0.0, 0.01, 0.1, 0.9],
                "fits": [False, False] if short else [False, True, True, False],
                "n": [7, 7, 6],
            }  # fmt: skip
        return found


def make_study(root: Path, *, steps: set[str] | None = None, **changed: Any) -> dict[str, Any]:
    """A study under a cache directory, with all steps or some; its results."""
    found = Maker().results() | changed
    if steps is not None:
        found = {name: result for name, result in found.items() if name in steps}
    directory = root / "studies" / f"refusal-{'b' * 20}"
    directory.mkdir(parents=True, exist_ok=True)
    of = content_key("a study of refusals")
    settings = RefusalSettings(n=8, draws=5, max_new_tokens=100)
    write_manifest(directory, REFUSAL, "toy-refusal", "f" * 64, settings, {}, of)
    for name, result in found.items():
        write_step(directory / f"{name}.json", result, key="k", of=of, seconds=1.5)
    return found


@pytest.fixture
def chat(tmp_path, monkeypatch):
    """The toy with a chat template, loaded by any name; a direction of it beside the study."""
    toy = interp.load_model("toy-refusal")
    model = replace(toy, tokenizer=deepcopy(toy.tokenizer))
    model.tokenizer.chat_template = (
        "<bos> {% for m in messages %}user: {{ m['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    monkeypatch.setattr(interp, "load_model", lambda name, **options: model)
    sides = [[_user(pair[k]) for pair in build_toy("toy-refusal").pairs] for k in (0, 1)]
    prompts = [chat_prompts(model, side) for side in sides]
    direction = difference_in_means(model, *prompts).at(1, -1)
    make_study(tmp_path)
    path = tmp_path / "studies" / f"refusal-{'b' * 20}" / STUDY_FILE
    save_directions(path, {"harmful-harmless": direction})
    return model, direction, sides


def _user(text: str) -> str:
    return text.removeprefix("<bos> user: ").removesuffix(" assistant:")


def visit(name: str, **link: str) -> AppTest:
    """A first visit to a page by a link."""
    return opened(PAGES[name], **link)


def trace(at: AppTest, name: str) -> dict[str, Any]:
    """The drawn trace whose name begins so."""
    every = [one for chart in charts(at) for one in chart["data"]]
    return next(
        one
        for one in every
        if one.get("name", "").startswith(name) and one.get("hoverinfo") != "skip"
    )


def words(at: AppTest) -> str:
    return " ".join(text.value for text in (*at.markdown, *at.caption))


@pytest.mark.parametrize("name", NAMES)
def test_without_a_study_each_page_says_what_to_do(name):
    at = visit(name)
    assert "No study is kept" in at.info[0].value
    assert not at.error


@pytest.mark.parametrize("name", NAMES)
def test_a_study_that_has_just_begun_breaks_no_page(name, tmp_path):
    make_study(tmp_path, steps={"behaviour"})
    at = visit(name)
    assert not at.error
    assert at.info


@pytest.mark.parametrize("name", NAMES)
def test_skipped_steps_break_no_page(name, tmp_path):
    found = Maker().results()
    skipped = [
        x for x in found if x.startswith(("heads", "groups", "paths", "selection", "cosmic"))
    ]
    bare = found["constellations"] | {
        "ratios": [], "picture": None, "threshold": None, "at chosen": None,
    }  # fmt: skip
    one = {"names": ["harmful-harmless"], "position": -1, "layer": 2, "floor": [[0.0] * 4]}
    changed: dict[str, Any] = dict.fromkeys(skipped, SKIPPED) | {
        "constellations": bare,
        "flips": {},
        "geometry": one | {"ceiling": {"harmful-harmless": [[1.0] * 4]}},
    }
    make_study(tmp_path, **changed)
    at = visit(name)
    assert not at.error
    if name in ("heads", "directions"):
        assert "Left out: too few pairs" in words(at)


@pytest.mark.parametrize("name", NAMES)
def test_every_page_draws_says_what_it_is_and_where_it_ends(name, tmp_path):
    make_study(tmp_path)
    at = visit(name)
    assert not at.error
    facts = " ".join(block.proto.body for block in at.get("html"))
    for part in ("toy-refusal · ffffffffffff", "8 of each kind and task", "b" * 20):
        assert part in facts
    assert "**What it does not show.**" in at.markdown[0].value
    assert charts(at)


def test_a_study_of_another_family_is_not_looked_at(tmp_path):
    make_study(tmp_path)
    assert len(kept(REFUSAL_PAGES)) == 1
    assert not kept(VERIFICATION_PAGES)
    at = visit("heads", study="verification-gone", refusal=f"refusal-{'b' * 20}")
    assert not at.warning
    assert at.query_params["refusal"] == f"refusal-{'b' * 20}"


def test_the_first_page_holds_claims_rates_and_separation(tmp_path):
    found = make_study(tmp_path)
    at = visit("study")
    evidence = [row["evidence"] for row in claims(found)]
    assert list(table_with(at, "evidence")["evidence"]) == evidence
    table = table_with(at, "about").set_index(["task", "about"])
    assert table.loc[("translate", "taboo"), "refused"] == 0.8
    assert table.loc[("translate", "taboo"), "neither"] == "1 degenerate"
    grid = numbers(charts(at)[0]["data"][0]["z"])
    assert grid == pytest.approx(np.array([[1.0, 0.0], [0.8, 0.05]]))
    auc = numbers(next(x for x in charts(at)[2]["data"] if "y" in x and x["mode"] != "lines")["y"])
    assert auc[-1] == pytest.approx(found["separation"]["probes"]["refused / answered"]["auc"][-1])
    assert trace(at, "shuffled labels")["line"]["color"] == "#808a96"
    assert {"report.html", "report.md"} <= downloads(at)
    assert named(at.button, "Run").disabled


@pytest.mark.long
def test_the_report_can_be_written(tmp_path):
    make_study(tmp_path)
    (study,) = kept(REFUSAL_PAGES)
    assert "toy-refusal refuse" in first_page.report(study)["md"]


def test_rejected_candidates_are_grey_and_say_why(tmp_path):
    make_study(tmp_path)
    at = visit("directions", score="induce")
    chart = charts(at)[0]
    drawn = numbers(chart["data"][0]["z"])
    assert np.isnan(drawn[:, [0, 3]]).all()
    assert drawn[:, 1:3] == pytest.approx(np.array([[0.5, 1.0]] * 2))
    hover = chart["data"][1]["hovertext"]
    assert "rejected: KL 5.6 on harmless prompts" in hover[4]
    assert "rejected: the vector is zero" in hover[0]
    assert "bypass" not in hover[0]
    assert "bypass 0.000 ± 0.100" in hover[5]
    frame = chart["layout"]["shapes"][-1]
    assert (frame["x0"], frame["y0"]) == (1.5, 0.5)  # layer 2, position -1
    table = table_with(at, "bypass")
    assert list(table["reason"][:4]) == ["kept"] * 4
    assert (table["layer"][0], table["position"][0]) == (2, -1)
    named(at.toggle, "Colour").set_value(True).run()
    assert numbers(charts(at)[0]["data"][0]["z"])[1, 3] == pytest.approx(1.5)


def test_no_survivor_is_an_explained_table(tmp_path):
    make_study(tmp_path)
    at = visit("directions", candidates="cosmic")
    assert "none survives" in words(at)
    assert len(table_with(at, "bypass")) == 8
    at = visit("directions", candidates="selection_over-refusal")
    assert "taken: position -1, layer 3" in words(at)  # of all layers, the largest effect
    assert not np.isnan(numbers(charts(at)[0]["data"][0]["z"])[1]).any()  # coloured


def test_effects_and_cosines_are_the_steps(tmp_path):
    make_study(tmp_path)
    at = visit("directions")
    effects = charts(at)[1]["data"]
    assert numbers(effects[1]["x"]) == pytest.approx([-1.0, -2.0, -3.0, -4.0])
    assert numbers(effects[0]["x"]) == pytest.approx([5.9, 6.1] * 4)
    named(at.slider, "Layer").set_value(1).run()
    cosines = numbers(charts(at)[4]["data"][0]["z"])
    assert cosines[0, 2] == pytest.approx(-0.3)
    assert numbers(trace(at, "halves of")["y"])[0] == pytest.approx(0.8)


def test_tokens_are_coloured_by_their_projection(chat):
    model, direction, sides = chat
    text = sides[0][0]
    at = visit("directions", model="toy-refusal")
    named(at.text_area, "Prompts").set_value(text).run()
    assert not at.error
    row = chat_prompts(model, [text]).rows[0]
    states = run_with_cache(model, [row], sites=[direction.site], layers=[direction.layer])
    along = states[direction.layer, direction.site][0].double() @ direction.unit
    strip = next(b.proto.body for b in at.get("html") if "token 0: projection" in b.proto.body)
    shown = [float(x) for x in re.findall(r'token \d+: projection (-?[\d.]+)"', strip)]
    assert shown == pytest.approx(along.tolist(), abs=6e-4)
    reds = re.findall(r"projection (-?[\d.]+)\" style=\"background:rgba\(192", strip)
    assert all(float(x) >= np.median(shown) - 1e-3 for x in reds)


def test_text_of_a_prompt_is_never_markup(chat):
    model, direction, _ = chat
    found = Projected(
        tokens=("<b>", "x"), projection=np.array([1.0, 2.0]), cosine=np.array([0.1, 0.2])
    )
    assert "<b>" not in projection_strips([found], "cosine", "cosine")
    assert "&lt;b&gt;" in projection_strips([found], "cosine", "cosine")


def test_too_many_prompts_are_refused_not_cut(chat):
    at = visit("directions", model="toy-refusal")
    named(at.text_area, "Prompts").set_value("\n".join(["a"] * 9)).run()
    assert any("shorten" in warning.value for warning in at.warning)


def test_trajectories_gate_and_ledger(tmp_path):
    found = make_study(tmp_path)["constellations"]
    at = visit("trajectories")
    drawn = charts(at)
    assert [b.value for b in at.subheader][0].startswith("Nearer")
    refused = next(x for x in found["ratios"] if x["class"] == "refused")
    lines = {t["name"]: t for t in drawn[0]["data"] if t.get("hoverinfo") != "skip"}
    assert numbers(lines["refused (n = 9)"]["y"]) == pytest.approx(refused["mean"])
    eff = numbers(drawn[2]["data"][0]["z"])
    assert np.isnan(eff[2]).all()
    assert eff[:2] == pytest.approx(np.array(found["effectiveness"][:2]))
    notes = [note["text"] for chart in drawn for note in chart["layout"].get("annotations", [])]
    assert "for display only" in notes
    assert {"published 0.85", "chosen 0.9"} <= set(notes)
    covered = trace(at, "benign rows, steered")
    want = [share_estimate(k, 20).mean for k in (10, 8, 6, 0)]
    assert numbers(covered["y"])[::2] == pytest.approx(want)
    assert len(table_with(at, "identified")) == 6
    assert list(table_with(at, "over layers")[""]) == ["", "taken"]
    at.session_state["ledger-filter"] = "gated out"
    at.run()
    shown = table_with(at, "identified")
    assert [text.split(":")[0] for text in shown["skipped"]] == ["gated out"] * 3


def test_heads_by_measure_with_groups_paths_and_flips(tmp_path):
    found = make_study(tmp_path)
    name = "triggers (necessity)"
    at = visit("heads", measure=name, picked="L1H0")
    x = found["heads_proper_refusals"]["measures"][name]
    drawn = charts(at)
    assert numbers(drawn[0]["data"][0]["z"]) == pytest.approx(np.array(x["values"]))
    top = table_with(at, "± stderr")
    assert list(top["head"]) == [row["label"] for row in x["top"]]
    ranks = table_with(at, "rank").set_index("measure")
    assert ranks.loc[name, "rank"] == "1 of 12"
    assert ranks.loc[name, "value"] == 0.6
    late = table_with(visit("heads", measure=name, picked="L2H0"), "rank").set_index("measure")
    assert late.loc["carries (along the direction)", "rank"] == "not one of 6"
    assert late.loc[name, "value"] == pytest.approx(x["values"][2][0])
    assert numbers(drawn[1]["data"][0]["z"])[0, 1] == 0.25
    random = next(t for t in drawn[2]["data"] if t["mode"] == "lines+markers")
    assert numbers(random["x"]) == pytest.approx([0.0, 0.1, 0.2])
    assert list(table_with(at, "path effect")["path effect"][:2]) == [0.2, 0.1]
    assert list(table_with(at, "carrier")["change of what it writes, %"]) == [-40.0]
    assert "0.500" in table_with(at, "texts that flip")["texts that flip"][0]
    named(at.selectbox, "Measure").set_value("any change (Ships)").run()
    ships = found["heads_proper_refusals"]["ships"]["values"]
    assert numbers(charts(at)[0]["data"][0]["z"]) == pytest.approx(np.array(ships))


def test_the_frontier_holds_both_sides_and_greys_nulls(tmp_path):
    found = make_study(tmp_path)
    at = visit("interventions")
    points = {t["name"]: t for t in charts(at)[0]["data"]}
    assert points["task constellations"]["x"] == [0.75]
    assert points["task constellations"]["y"] == [RETAINED]
    assert points["random direction 1"]["marker"]["color"] == "#808a96"
    assert points["add - harmful-harmless"]["marker"]["color"] != "#808a96"
    table = table_with(at, "retained").set_index("method")
    costs = table_with(at, "perplexity").set_index("method")
    assert table.loc["ablate harmful-harmless", "removed"].startswith("0.900")
    assert costs.loc["ablate harmful-harmless", "neither"] == 12
    assert costs.loc["task constellations", "gated"] == "4"
    steered = table["retained, if steered"]
    assert steered["task constellations"] == "none steered: not tested"
    assert re.fullmatch(r"0\.100 of the \d+ steered", steered["ablate harmful-harmless"])
    assert costs.loc["ablate harmful-harmless", "perplexity"] == "2.00 → 20.00"
    assert costs.loc["ablate harmful-harmless", "changed"] == 5
    assert list(costs.index) == list(table.index)
    drawn = table_with(at, "random, fall")
    assert drawn["fall of the score"][0].startswith("3.000")
    assert drawn["random, fall"][0].startswith("0.100")
    assert len(table) == sum(name.startswith("method_") for name in found)


def test_doses_show_the_chosen_one(tmp_path):
    make_study(tmp_path)
    at = visit("interventions", section="doses", method="task constellations")
    assert numbers(trace(at, "over-refusals released")["y"]) == pytest.approx([0.0, 0.2, 0.6, 1.0])
    table = table_with(at, "chosen").set_index("dose")
    assert table.loc[1.0, "chosen"] == "chosen"
    assert numbers(trace(at, "answered rows")["y"]) == pytest.approx([0.0, 0.01, 0.1, 0.9])
    assert not at.warning
    assert "ablate harmful-harmless" not in named(at.selectbox, "Method").options


def test_three_texts_side_by_side(chat, capsys):
    model, direction, sides = chat
    text = sides[0][0]
    at = visit("interventions", section="try one", model="toy-refusal")
    assert "may not hold" in at.warning[0].value
    named(at.text_area, "The prompt").set_value(text).run()
    named(at.slider, "Dose").set_value(4.0).run()
    named(at.number_input, "New tokens").set_value(8).run()
    named(at.button, "Generate").click().run()
    assert not at.exception
    assert not at.error
    prompts = chat_prompts(model, [text])
    edits = (
        None,
        add_direction(model, direction, coefficient=-4.0),
        add_direction(model, random_direction(direction, seed=0), coefficient=-4.0),
    )
    made = [generate_steered(model, prompts, e, max_new_tokens=8)[0][0].text for e in edits]
    *shown, code = [code.value for code in at.code]
    assert shown == [one or "(nothing)" for one in made]
    assert made[0] != made[1]
    capsys.readouterr()
    exec(compile(code, "the page's Python", "exec"), {})  # noqa: S102
    assert capsys.readouterr().out == "".join(f"{one}\n" for one in made)
    at.session_state["steered-method"] = texts.ABLATE
    at.run()
    assert named(at.slider, "Dose").disabled
    assert not at.code  # asked for anew, not yet made


def test_a_model_of_another_width_is_refused_once(chat, tmp_path):
    _, direction, sides = chat
    path = tmp_path / "studies" / f"refusal-{'b' * 20}" / STUDY_FILE
    wide = replace(direction, vector=torch.ones(7, dtype=torch.float64))
    save_directions(path, {"harmful-harmless": wide})
    at = visit("interventions", section="try one", model="toy-refusal")
    named(at.text_area, "The prompt").set_value(sides[0][0]).run()
    named(at.button, "Generate").click().run()
    assert [("width 7" in error.value) for error in at.error] == [True]


def test_scores_are_of_the_study_s_tokens_only(chat):
    model, _, _ = chat
    (study,) = kept(REFUSAL_PAGES)
    assert tokens_of(study, model) == ()  # another vocabulary
    ids = [model.single_token("refuse")]
    own = {"ids": ids, "strings": list(model.strings(ids))}
    assert tokens_of(replace(study, results={"tokens": own}), model) == tuple(ids)


def test_the_file_of_candidates_holds_every_selection(tmp_path):
    found = make_study(tmp_path)
    (study,) = kept(REFUSAL_PAGES)
    rows = study_table(study, "directions")["candidates"].tolist()
    every = {CANDIDATES[name]: found[name] for name in CANDIDATES if "rows" in found.get(name, {})}
    assert len(every) > 1
    for words, x in every.items():
        assert rows.count(words) == len(x["rows"])


def settle(root, **changed):
    """Other settings in a study that is kept."""
    study = open_study(REFUSAL, root / "studies" / f"refusal-{'b' * 20}")
    about = json.loads((study.directory / "study.json").read_text())["facts"]
    settings = replace(study.settings, **changed)
    write_manifest(
        study.directory, REFUSAL, study.model, study.model_hash, settings, {}, about["of"]
    )


def test_a_study_beyond_the_usual_bounds_is_shown(tmp_path):
    make_study(tmp_path)
    settle(tmp_path, n=5000, draws=2000, max_new_tokens=900)
    at = visit("study", model="toy-refusal")
    assert (named(at.number_input, "n").value, named(at.number_input, "Draws").value) == (
        5000,
        2000,
    )


def test_only_a_study_that_the_button_goes_on_with_is_resumed(tmp_path):
    make_study(tmp_path)  # under another key: of other prompts, say
    at = visit("study", model="toy-refusal")
    assert {"Run"} == {button.label for button in at.button} & {"Run", "Resume"}
    model = interp.load_model("toy-refusal")
    home = usual_directory(REFUSAL, model, RefusalSettings(n=8, draws=5, max_new_tokens=100))
    (tmp_path / "studies" / f"refusal-{'b' * 20}").rename(home)
    at = visit("study", model="toy-refusal")
    assert {"Resume"} == {button.label for button in at.button} & {"Run", "Resume"}


def test_a_study_is_run_with_its_system_prompt(tmp_path, monkeypatch):
    asked: list[Any] = []
    monkeypatch.setattr(
        "interp.ui.shared.jobs.start", lambda key, work: asked.append(work.args[-1])
    )
    at = visit("study", model="toy-refusal")
    named(at.text_input, "System prompt").set_value("Do not speak of gardens.").run()
    named(at.number_input, "n").set_value(6).run()
    named(at.button, "Run").click().run()
    assert not at.exception
    assert asked == [RefusalSettings(n=6, draws=10, system="Do not speak of gardens.")]


def sent(at: AppTest) -> str:
    """All that a page sends to the browser."""
    return " ".join(str(node.proto) for part in (at.main, at.sidebar) for node in part)


@pytest.mark.long
@pytest.mark.parametrize("shared", [True, False])
def test_on_a_shared_server_the_system_prompt_of_a_study_is_hidden(
    chat, tmp_path, monkeypatch, shared
):
    """Somebody else may have typed it: no page, form or report shows it, nor its tokens."""
    make_study(tmp_path)
    secret = "compost"  # a word that the toy has
    chat[0].tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    settle(tmp_path, system=f"No {secret} ")
    monkeypatch.setattr("interp.ui.shared.offered.is_shared", lambda: shared)
    pages = {name: sent(visit(name, model="toy-refusal")) for name in NAMES}
    report = first_page.report(open_study(REFUSAL, tmp_path / "studies" / f"refusal-{'b' * 20}"))
    told = {name for name, text in (pages | report).items() if secret in text}
    assert told == (set() if shared else {"study", "directions", "html", "md"})
    assert all((HIDDEN in text) == shared for text in (pages["study"], *report.values()))


def test_figures_hold_their_numbers():
    grid = candidate_grid(
        np.array([[1.0, 2.0]]),
        x=["0", "1"],
        y=["-1"],
        rejected=np.array([[True, False]]),
        texts=[["a", "b"]],
        colour_title="t",
        best=(0, 1),
    )
    assert np.isnan(grid.data[0].z[0][0])
    assert list(grid.data[-1].hovertext) == ["a", "b"]
    band = ([0.5, 0.1], [0.4, 0.0], [0.6, 0.2])
    gate = gate_curve([0.9, 0.95], {"a": band}, marks={"low": 0.2, "mid": 0.93, "high": 0.999})
    notes = [note.text for note in gate.layout.annotations]
    assert notes == ["◂ low 0.2", "mid 0.93", "high 0.999 ▸"]
    assert len(gate.layout.shapes) == 1
