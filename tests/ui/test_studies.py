"""The verification pages, on a hand-made study: what they show is what its steps hold."""

import io
import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("streamlit", reason="the app's extra is not installed")

from streamlit.testing.v1 import AppTest

import interp
from interp.core.errors import InterpError
from interp.core.files import content_key
from interp.neurons.search import search_neurons
from interp.plots.lines import (
    head_map,
    interval_lines,
    share_axis,
    spread_by_label,
    values_with_null,
)
from interp.plots.style import null_band
from interp.studies.formatting import selected
from interp.studies.steps import read_step, write_step
from interp.studies.study import open_study, write_manifest
from interp.studies.verification.report.claims import claims
from interp.studies.verification.settings import VERIFICATION, VerificationSettings
from interp.studies.verification.steps.behaviour import SHARES
from interp.studies.verification.steps.interchange import EXCHANGES
from interp.studies.verification.steps.steering import ANSWER
from interp.tasks.countdown import make_countdown
from interp.ui.prompts.neuron_panel import MOST_FOUND
from interp.ui.shared import jobs, widgets
from interp.ui.studies import first_page
from interp.ui.studies.open_study import kept
from interp.ui.studies.pages import VERIFICATION_PAGES
from interp.ui.verification import generate
from tests.pages import charts, downloads, named, numbers, opened, table_with

NAMES = ("study", "probes", "glu", "heads", "interventions")
PAGES = {name: f"interp/ui/views/verification/{name}.py" for name in NAMES}
OUTCOMES = ("success", "partial", "fail", "ood", "empty")
RULES = ("interp-1", "next_token", "v1", "final", "r1")
SETS = {
    "GLU_Valid": ["L2N0", "L3N1"],
    "GLU_Valid and GLU_Invalid": ["L2N0", "L3N1", "L2N5", "L3N6"],
    "A_Prev": ["L0H1", "L1H2"],
    "A_Prev (published)": ["L1H2"],
    "A_Verif": ["L0H1"],
    "A_Verif (published)": ["L1H2"],
}
OURS = [name for name in SETS if "published" not in name]


class Maker:
    """Random step results in the shapes the study's steps keep them in."""

    def __init__(self, layers: int = 4, heads: int = 3, draws: int = 5, seed: int = 0) -> None:
        self.layers, self.heads, self.draws = layers, heads, draws
        self.rng = np.random.default_rng(seed)

    def array(self, *shape: int, low: float = 0.0, high: float = 1.0) -> list[Any]:
        return self.rng.uniform(low, high, shape).tolist()

    def estimate(self) -> dict[str, float]:
        low, mean, high = sorted(self.array(3))
        return {"mean": mean, "low": low, "high": high, "n": 40}

    def null(self) -> dict[str, float]:
        low, mean, high = sorted(self.array(3))
        selected, p = self.array(2)
        return {
            "selected": selected, "mean": mean, "low": low, "high": high, "share": p,
            "draws": self.draws,
        }  # fmt: skip

    def accuracy(self, *shape: int) -> dict[str, Any]:
        names = ("shuffled_low", "shuffled_high", "low", "accuracy", "high")
        parts = np.sort(self.rng.uniform(0, 1, (5, *shape)), 0).tolist()
        return {
            **dict(zip(names, parts, strict=True)),
            "auc": self.array(*shape), "n_train": 30, "n_test": 10,
        }  # fmt: skip

    def results(self) -> dict[str, Any]:
        """All steps."""
        steps = [
            self._behaviour(), self._probes(), self._steering(), self._lens(), self._glu(),
            self._attention(), self._patching(), self._scores(), self._curves(),
            {"orders": {"attention": ["L0H1"]}}, self._communication(), self._effects(),
            self._carried(),
            self._generated(), self._controls(),
        ]  # fmt: skip
        found: dict[str, Any] = {}
        for step in steps:
            found |= step
        return found

    def _behaviour(self) -> dict[str, Any]:
        problems = make_countdown(2 * 6)[:2]
        texts = [f" 1 + 2 = 3 (not {p.target})\n- 4 = {p.target} (this works)" for p in problems]
        row = {"prompt": [1], "tokens": [2], "stopped": True, "fired": []}
        rows = [{"share": text, **self.estimate()} for text in SHARES.values()]
        about = {"problems": 2, "attempts": 2.0, "example": texts[0], "find": 20, "test": 20}
        return {
            "texts_0": {"texts": [{**row, "text": text} for text in texts]},
            "behaviour": {**about, "rows": rows},
        }

    def _probes(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            token: {
                site: self.accuracy(self.layers) for site in ("resid_post", "attn_out", "mlp_out")
            }
            for token in ("t_ans", "t_paren")
        }
        found["t_paren"]["z"] = self.accuracy(self.layers, self.heads)
        pairs = ("pair", "pair_forced", "pair_shuffled", "start")
        found["softmax"] = {
            **self.accuracy(self.layers),
            **{name: self.array(self.layers, low=-1, high=0) for name in pairs},
            "adjacent": self.array(self.layers - 1),
            "adjacent_shuffled": self.array(self.layers - 1),
            "random_limit": 0.08,
            "tokens": [{"valid": [" yes", "<b>"], "invalid": [" no"]}] * self.layers,
        }
        return {"probes": found}

    def _steering(self) -> dict[str, Any]:
        rows = [
            {"direction": name, "scale": scale}
            | {word: {**self.estimate(), "neither": 0.1, "find": 0.4, "share": 0.3,
                      "null": self.array(self.draws)} for word in ("this", "not")}
            for name in ("softmax", "logistic")
            for scale in (0.1, 0.2)
        ]  # fmt: skip
        text = {"before": "- 1 + 2 = 3", "plain": " (not 4)", "steered": " (this works)"}
        found = {"rows": rows, "layers": [2, 3], "length": 7.0, "null_n": 5, "text": text}
        return {"steering": {**found, "chosen": {"this": 3, "not": 2}}}

    def _lens(self) -> dict[str, Any]:
        def group() -> dict[str, Any]:
            return {
                "top": [[["this", 0.5], ["not", 0.1]]] * self.layers,
                "probability": {
                    word: [self.estimate() for _ in range(self.layers)] for word in ("this", "not")
                },
            }

        groups = {"valid": group(), "invalid": group()}
        without = {"n": 20, "groups": {"A_Verif": group()}}
        return {
            "lens": {"n": 40, "words": ["this", "not"], "groups": groups},
            "lens_without": without,
        }

    def _glu(self) -> dict[str, Any]:
        def one(name: str) -> dict[str, Any]:
            neurons = [f"L{2 + i % 2}N{i + 5 * (name == 'GLU_Invalid')}" for i in range(3)]
            top = [
                {
                    "neuron": neuron, "cosine": self.array(1)[0], "valid": self.array(1)[0],
                    "invalid": self.array(1)[0], "parts": self.array(3), "auc": self.array(1)[0],
                    "writes_valid": [" yes", " *ok*"], "writes_invalid": [" no"],
                }
                for neuron in neurons
            ]  # fmt: skip
            parts = {part: self.array(40, 2, low=-1) for part in ("gate", "up", "product")}
            return {
                "neurons": neurons, "cosines": self.array(3), "null": self.null(),
                "top": top[:2], "rest": top[2:],
                "samples": {"valid": [True, False] * 20, **parts},
                "difference": self.array(3), "parts": self.array(3),
            }  # fmt: skip

        found: dict[str, Any] = {"layers": [2, 3], "top_k": 2, "direction": "logistic"}
        found |= {name: one(name) for name in ("GLU_Valid", "GLU_Invalid")}
        for case in ("opposed_neurons", "antipodes_without_probes"):
            pairs = [["L2N0", "L2N5", -0.5]]
            nulls = {"null": self.null(), "null_neurons": self.null()}
            found[case] = {"mean_cosine": -0.4, **nulls, "pairs": pairs}
        return {"glu": found} | self._glu_choice()

    def _glu_choice(self) -> dict[str, Any]:
        tried = {"disabled": 0.2, "log_odds": 1.5}
        row = {"neurons": 8, "GLU_Valid": tried, "both": tried, "random": tried}
        rows = [{"direction": name, "k": 2, **row} for name in ("softmax", "logistic")]
        return {"glu_choice": {"rows": rows, "direction": "logistic", "k": 2, "n": 20}}

    def _attention(self) -> dict[str, Any]:
        def case() -> dict[str, Any]:
            row = {"head": "L0H1", "attention": self.estimate(), "control": 0.05}
            return {
                "n": 40,
                "values": self.array(self.layers, self.heads),
                "excess": self.array(self.layers, self.heads, low=-0.2),
                "heads": ["L0H1", "L1H2"],
                "top": [row],
            }

        cases = [f"{t} to {keys}" for t in ("t_ans", "t_paren") for keys in ("earlier", "asked")]
        return {"attention": {name: case() for name in cases}}

    def _patching(self) -> dict[str, Any]:
        def side() -> dict[str, Any]:
            values = self.array(self.layers, self.heads, low=-0.2)
            top = [
                {
                    "label": f"L{i % 2}H{i // 2}",
                    "value": 0.3,
                    "stderr": 0.02,
                    "low": 0.2,
                    "high": 0.4,
                }
                for i in range(6)
            ]
            test = self.null() | {"k": 6, "unseen": self.estimate(), "flips": {"p": 0.0125}}
            return {"values": values, "top": top, "null": test, "null_of": [6, 2]}

        found: dict[str, Any] = {"n": 6, "counts": {"made": 9, "flipped": 7, "kept": 6}}
        found |= {name: side() for name in ("denoise", "noise")}
        found |= {site: self.array(self.layers, 2) for site in ("attn_out", "mlp_out")}
        into = {"mlps": ["L2.mlp_out"], "glu": ["L2N5"], "direct": ["logits"]}
        paths = {f"paths_{name}": side() | {"receivers": x} for name, x in into.items()}
        return {"patching": found} | paths

    def _scores(self) -> dict[str, Any]:
        heads = ["L0H1", "L1H2"]
        one = {"heads": heads, "values": [0.7, 0.2], "stderr": [0.1, 0.1], "order": heads}
        modes = ("diag", "ov", "activation", "diag, GLU_Valid")
        return {"head_scores": {mode: {**one, "neurons": 3} for mode in modes}}

    def _curves(self) -> dict[str, Any]:
        test = [
            {"size": i + 1, "added": f"L{i}H1", "disabled": self.estimate(), "log_odds": 0.1}
            | ({"null": self.array(self.draws)} if i != 1 else {})
            for i in range(3)
        ]
        find = {"attention": {"curve": test, "size": None}, "greedy": {"curve": test, "size": 1}}
        for name in ("head-GLU, diag", "head-GLU, diag (published)", "attention (published)"):
            find[name] = {"curve": test, "size": 2}
        chosen = {"order": "greedy", "reached": True, "chosen": ["L0H1"]}
        counts = {
            "draws": 10, "sets": {"L0H1": 9, "L1H2": 1}, "counts": {"L0H1": 9, "L1H2": 1},
            "on_test": ["L0H1"],
        }  # fmt: skip
        kinds = {kind: self.estimate() for kind in ("zero", "mean", "resample")}
        searched = {
            "candidates": 4, "most": 2, "tried": 10, "found": 1, "heads": 12,
            "sets": [{"heads": ["L0H1", "L2H0"], **kinds}],
            "alone": [{"heads": ["L1H1"], **kinds}],
        }  # fmt: skip
        return {
            "curves": {"find": find, "test": test, **chosen},
            "smallest": searched,
            "stability": counts,
        }

    def _communication(self) -> dict[str, Any]:
        found = {
            "agreement": {"diag and ov": 0.2}, "ablated": ["L0H1"], "n": 24, "n_null": 6,
            "neurons": SETS["GLU_Valid"],
            "at": {
                place: {
                    "before": self.array(2), "after": self.array(2),
                    "total": self.estimate(), "null": self.null(),
                    "silenced": self.estimate(), "silenced_null": self.null(),
                }
                for place in ("t_ans", "t_paren")
            },
        }  # fmt: skip
        return {"communication": found}

    def _effects(self) -> dict[str, Any]:
        def one(kind: str, where: int | str) -> dict[str, Any]:
            names = ("disabled", "invalid_kept", "auc", "shift", "shift_invalid", "kl")
            sets = {
                name: {
                    "components": labels, "disabled": self.estimate(), "kl": self.array(1)[0],
                    "invalid_kept": self.estimate(), "shift": self.estimate(),
                    "auc": self.estimate(), "shift_invalid": self.estimate(), "auc_share": 1 / 6,
                    "own": {key: self.array(self.draws) for key in ("disabled", "auc")},
                    "null": {key: self.array(self.draws) for key in names}, "share": 1 / 6,
                    "draws": self.draws, "null_n": 20,
                }
                for name, labels in SETS.items()
            }  # fmt: skip
            none = {name: self.estimate() for name in ("disabled", "invalid_kept", "auc")}
            about = {"kind": kind, "where": where, "n": 40}
            return {**about, "sets": sets, "none": none}

        found = {f"effects_{kind}": one(kind, 2) for kind in ("zero", "mean", "resample")}
        return {**found, "effects_published": one("zero", "all")}

    def _carried(self) -> dict[str, Any]:
        def exchanged(sets: dict[str, list[str]], window: int) -> dict[str, Any]:
            def cell(exchange: str) -> dict[str, Any]:
                found: dict[str, Any] = {"effect": self.estimate(), "flipped": self.estimate()}
                if exchange == EXCHANGES[0]:
                    draws = {key: self.array(self.draws) for key in ("null", "flipped_null")}
                    found |= draws | {"share": 0.5, "own": 0.6}
                return found

            rows = {
                name: {
                    "components": labels,
                    "exchanges": {
                        kind: {side: cell(kind) for side in ("valid", "invalid")}
                        for kind in EXCHANGES
                    },
                }
                for name, labels in sets.items()
            }
            return {"n": 20, "window": window, "null_n": 5, "gap": 9.0, "sets": rows}

        def head(label: str) -> dict[str, Any]:
            reads = {"query": "t_ans", "key": "the result's first digit", "other": 0.1}
            return {"label": label, "value": 0.4, "low": 0.3, "high": 0.5} | {
                "reads": reads | self.estimate()
            }

        stages = [{"heads": [head("L2H0"), head("L2H1")]}, {"heads": [head("L1H1")]}]
        writers = {"n": 6, "writers": ["L3.mlp_out"], "places": ["t_first", "t_ans", "t_paren"]}
        turned = {
            "cosine": self.array(self.layers, low=-1),
            **{word: self.array(self.layers, 2) for word in ("this", "not")},
        }
        directions = ("mean difference", "logistic", ANSWER, "odd - even result", "shuffled 0")
        edited = {"this": self.estimate(), "log_odds": self.estimate(), "auc": self.estimate()}
        return {
            "interchange": exchanged(SETS, 2),
            "interchange_chain": exchanged({"stage 1": ["L2H0", "L2H1"]}, 3),
            "chain": writers | {"stages": stages},
            "compared": {
                "rows": [
                    {"words": f"own {side} attempts", "expected": word, **edited}
                    for side, word in (("valid", "this"), ("invalid", "not"))
                ]
            },
            "steering_by_layer": {
                "doses": [0.5, 1.0], "dose": 1, "n": 20, "lengths": self.array(self.layers),
                "learnt": list(directions[:2]), "layers": self.layers,
                "find": {word: turned[word] for word in ("this", "not")},
                "directions": dict.fromkeys(directions, turned),
            },
        }  # fmt: skip

    def _generated(self) -> dict[str, Any]:
        def shares() -> dict[str, Any]:
            parts = self.rng.dirichlet(np.ones(5)).tolist()
            return {
                name: {**self.estimate(), "mean": part}
                for name, part in zip(OUTCOMES, parts, strict=True)
            }

        rows = {
            name: {
                "components": labels,
                "outcomes": {rule: shares() for rule in RULES},
                "random": shares() if labels else None,
                "random_each": self.array(self.draws) if labels else [],
                "draws": self.draws if labels else 0,
                "share": 0.5 if labels else None,
                "examples": [" (not 71)", " (<b>", " (this works)"],
            }
            for name, labels in {"none": [], **SETS}.items()
        }
        about = {"kind": "zero", "where": 2, "n": 20, "max_new_tokens": 25, "each": 10}
        return {
            "interventions": {**about, "rows": rows},
            "interventions_published": {**about, "where": "published", "rows": rows},
        }

    def _controls(self) -> dict[str, Any]:
        side: dict[str, Any] = {"n": 40, "none": {"arithmetic": self.estimate()}}
        side["none"]["loss"] = self.estimate()
        for name in OURS:
            draws = self.array(self.draws)
            side[name] = {
                "arithmetic": self.estimate(), "arithmetic_null": draws,
                "arithmetic_beside": self.estimate(),
                "loss": self.estimate(), "loss_change": self.estimate(),
                "loss_change_null": draws, "loss_change_beside": self.estimate(),
            }  # fmt: skip
        counts = {"made": 9, "flipped": 7, "kept": 6}
        enough: dict[str, Any] = {"n": 6, "null_n": 4, "window": 2, "gap": 9.5, "counts": counts}
        for way in ("valid into invalid", "invalid into valid"):
            enough[way] = {
                name: {
                    "effect": 0.4, "effect_low": 0.3, "effect_high": 0.5, "share": 0.5,
                    "effect_null": self.array(self.draws), "flipped": self.estimate(),
                    "flipped_null": self.array(self.draws),
                }
                for name in SETS
            }  # fmt: skip
        return {"side_effects": side, "sufficiency": enough}


def make_study(root: Path, *, steps: set[str] | None = None, **shape: int) -> dict[str, Any]:
    """A study under a cache directory, with all steps or some; its results."""
    found = Maker(**shape).results()
    if steps is not None:
        found = {name: result for name, result in found.items() if name in steps}
    directory = root / "studies" / f"verification-{'a' * 20}"
    directory.mkdir(parents=True, exist_ok=True)
    settings, of = VerificationSettings(n=40, draws=5, pairs=6), content_key("a study")
    beside = {"base": None}
    write_manifest(directory, VERIFICATION, "toy-verification", "f" * 64, settings, beside, of)
    for name, result in found.items():
        write_step(directory / f"{name}.json", result, key="k", of=of, seconds=1.5)
    return found


def visit(name: str, **link: str) -> AppTest:
    """A first visit to a page by a link."""
    return opened(PAGES[name], **link)


def drawn(at: AppTest, chart: int) -> list[dict[str, Any]]:
    """A chart's traces."""
    return charts(at)[chart]["data"]


def lines(at: AppTest, chart: int) -> dict[str, np.ndarray]:
    """The drawn values of a chart's named lines."""
    found = [trace for trace in drawn(at, chart) if trace.get("hoverinfo") != "skip"]
    return {trace["name"]: numbers(trace["y"]) for trace in found}


def drawn_map(at: AppTest, chart: int) -> np.ndarray:
    return numbers(drawn(at, chart)[0]["z"])


@pytest.mark.parametrize("name", NAMES)
def test_without_a_study_each_page_says_what_to_do(name):
    at = visit(name)
    assert "No study is kept" in at.info[0].value
    assert not at.error


@pytest.mark.parametrize("name", NAMES)
def test_missing_steps_are_named(name, tmp_path):
    make_study(tmp_path, steps={"texts_0"})
    at = visit(name)
    assert f"0 of {len(VERIFICATION_PAGES.steps)} steps" in at.info[0].value
    assert "finished steps are kept" in at.info[0].value
    assert not at.error


@pytest.mark.parametrize("name", NAMES)
def test_every_page_draws_says_what_it_is_and_where_it_ends(name, tmp_path):
    make_study(tmp_path)
    at = visit(name)
    assert not at.error
    facts = " ".join(block.proto.body for block in at.get("html"))
    for part in ("toy-verification · ffffffffffff", "40, half of them valid", "seed", "a" * 20):
        assert part in facts
    assert "**What it does not show.**" in at.markdown[0].value
    assert downloads(at) >= {"CSV", "JSON", "Notebook"}
    assert name == "study" or at.get("plotly_chart")


def test_study_page_shows_the_claims_and_what_is_kept(tmp_path):
    found = make_study(tmp_path)
    at = visit("study")
    assert list(table_with(at, "evidence")["evidence"]) == [
        row["evidence"] for row in claims(found)
    ]
    assert list(table_with(at, "share")["value"]) == [r["mean"] for r in found["behaviour"]["rows"]]
    assert list(table_with(at, "still to do")["steps"]) == ["complete"]
    assert downloads(at) == {
        "report.html",
        "report.md",
        "CSV",
        "JSON",
        "Notebook",
    }
    assert named(at.button, "Run").disabled


@pytest.mark.long
def test_the_report_can_be_written(tmp_path):
    make_study(tmp_path)
    (study,) = kept(VERIFICATION_PAGES)
    report = first_page.report(study)
    assert report["html"].count("<figure>") > 5
    assert "# How toy-verification checks" in report["md"]


def test_probes_are_drawn_as_the_step_holds_them(tmp_path):
    found = make_study(tmp_path)
    at = visit("probes", probed="attn_out", picked="L1H2")
    for chart, token in enumerate(("t_ans", "t_paren")):
        step = found["probes"][token]["attn_out"]
        assert lines(at, chart)["accuracy"] == pytest.approx(step["accuracy"])
    assert drawn_map(at, 2) == pytest.approx(np.array(found["probes"]["t_paren"]["z"]["accuracy"]))
    accuracy = found["probes"]["t_paren"]["z"]["accuracy"][1][2]
    assert any(f"**L1H2** accuracy {accuracy:.3f}" in text.value for text in at.markdown)
    pair = lines(at, 3)
    assert pair["cos(W_valid, W_invalid)"] == pytest.approx(found["probes"]["softmax"]["pair"])
    watched = lines(at, 7)
    means = [row["mean"] for row in found["lens"]["groups"]["valid"]["probability"]["this"]]
    assert watched["this"] == pytest.approx(means)


def test_glu_table_and_null_are_the_step_s(tmp_path):
    found = make_study(tmp_path)["glu"]["GLU_Invalid"]
    at = visit("glu", glu="GLU_Invalid", neuron=found["top"][1]["neuron"])
    table, every = table_with(at, "covariance"), [*found["top"], *found["rest"]]
    assert list(table["neuron"]) == found["neurons"]
    assert list(table["cosine"]) == [row["cosine"] for row in every]
    assert list(table["covariance"]) == [row["parts"][2] for row in every]
    null = found["null"]
    assert any(f"{null['mean']:.3f} [{null['low']:.3f}" in text.value for text in at.markdown)
    assert at.subheader[0].value == found["top"][1]["neuron"]
    assert len(at.get("plotly_chart")) == 3
    late = visit("glu", glu="GLU_Invalid", neuron=found["rest"][0]["neuron"])
    assert late.subheader[0].value == found["rest"][0]["neuron"]
    assert "kept for the first 2 neurons" in late.info[0].value
    assert not late.get("plotly_chart")


def test_a_glu_set_kept_before_all_were_shows_its_first_neurons(tmp_path):
    found = Maker()._glu()["glu"]
    for name in ("GLU_Valid", "GLU_Invalid"):
        del found[name]["rest"]
    make_study(tmp_path)
    (path,) = (tmp_path / "studies").glob("*/glu.json")
    write_step(path, found, key="k", of=read_step(path)["of"], seconds=1.5)
    table = table_with(visit("glu"), "covariance")
    assert len(table) == len(found["GLU_Valid"]["top"])


def test_a_head_s_detail_ranks_and_measures_it(tmp_path):
    found = make_study(tmp_path)
    at = visit("heads", picked="L0H1", attended="t_paren to asked", shown="excess")
    assert "L0H1" in at.subheader[0].value
    assert drawn_map(at, 0) == pytest.approx(
        np.array(found["attention"]["t_paren to asked"]["excess"])
    )
    attention = table_with(at, "query to keys").set_index("query to keys")
    values = np.array(found["attention"]["t_ans to earlier"]["values"])
    assert attention.loc["t_ans to earlier", "attention"] == values[0, 1]
    rank = 1 + int((values > values[0, 1]).sum())
    assert attention.loc["t_ans to earlier", "rank"] == f"{rank} of 12"
    effects = table_with(at, "± stderr")
    assert effects["value"][0] == found["patching"]["noise"]["values"][0][1]
    assert any("9 of 10" in text.value for text in at.markdown)
    assert any("earlier occurrences of the same number" in info.value for info in at.info)
    named(at.selectbox, "Head looked at").set_value("L3H2").run()
    assert at.query_params["picked"] == "L3H2"
    named(at.button, "Clear").click().run()
    assert "picked" not in at.query_params


def test_the_strongest_heads_stand_beside_the_others_near_them(tmp_path):
    found = make_study(tmp_path)["patching"]["noise"]
    at = visit("heads")
    grey, own = drawn(at, 4)[:2]
    assert own["text"] == [row["label"] for row in found["top"]]
    listed = {(i % 2, i // 2) for i in range(6)}
    others = [
        [v for at, row in enumerate(found["values"]) for head, v in enumerate(row)
         if abs(at - layer) <= 2 and (at, head) not in listed]
        for layer in (0, 1, 0, 1, 0, 1)
    ]  # fmt: skip
    assert numbers(grey["x"]) == pytest.approx(np.concatenate(others))
    test = found["null"]
    assert any(selected(test) in text.value for text in at.caption)
    assert "p = 0.0125, by sign flips" in selected(test)


def test_the_curve_has_the_null_where_it_was_drawn(tmp_path):
    found = make_study(tmp_path)["curves"]["test"]
    curve = lines(visit("heads"), 6)
    assert curve["these heads"] == pytest.approx([point["disabled"]["mean"] for point in found])
    null = curve["random heads, same layers"]
    assert null[0] == pytest.approx(np.mean(found[0]["null"]))
    assert np.isnan(null[1])


def test_a_steered_verdict_is_drawn_beside_random_directions(tmp_path):
    rows = make_study(tmp_path)["steering"]["rows"]
    at = visit("probes")
    for offset, word in enumerate(("this", "not")):
        drawn = lines(at, 5 + offset)
        for name in ("softmax", "logistic"):
            mine = [row[word]["mean"] for row in rows if row["direction"] == name]
            assert drawn[name] == pytest.approx(mine)
        null = [np.mean(row[word]["null"]) for row in rows if row["direction"] == "logistic"]
        assert drawn["random directions"] == pytest.approx(null)
    assert any("(this works)" in block.value for block in at.code)


def test_every_set_of_few_heads_that_disables_is_listed(tmp_path):
    (row,) = make_study(tmp_path)["smallest"]["sets"]
    table = table_with(visit("heads"), "found among")
    assert list(table["heads"]) == ["L0H1 L2H0", "L1H1"]
    assert table['mean: judged "not"'][0].startswith(f"{row['mean']['mean']:.3f}")


@pytest.mark.parametrize("kind", ["effects_zero", "effects_mean", "effects_published"])
def test_verdicts_are_the_step_s(kind, tmp_path):
    found = make_study(tmp_path)[kind]["sets"]
    at = visit("interventions", ablation=kind)
    table = table_with(at, "KL").set_index("set")
    for name, x in found.items():
        assert table.loc[name, 'valid judged "not"'] == x["disabled"]["mean"]
        assert table.loc[name, "KL"] == x["kl"]
        assert table.loc[name, "random sets"].startswith(f"{np.mean(x['null']['disabled']):.3f}")


def test_what_sets_carry_is_the_step_s(tmp_path):
    results = make_study(tmp_path)
    at = visit("interventions", section="exchange")
    assert len(at.get("plotly_chart")) == 2
    table = table_with(at, "own mean: turned").set_index(["class", "set"])
    for name, x in results["interchange"]["sets"].items():
        for side in ("valid", "invalid"):
            turned = x["exchanges"]["own class's mean"][side]["flipped"]["mean"]
            assert table.loc[(side, name), "own mean: turned"] == turned
    chained = table_with(visit("interventions", section="chain"), "path effect")
    assert chained["head"].tolist() == ["L2H0", "L2H1", "L1H1"]
    assert chained["stage"].tolist() == [1, 1, 2]
    edited = table_with(visit("interventions", section="edits"), "expected")
    rows = results["compared"]["rows"]
    assert edited["mean log-odds"].tolist() == [row["log_odds"]["mean"] for row in rows]
    at = visit("interventions", section="one layer")
    assert len(at.get("plotly_chart")) == 2
    found = results["steering_by_layer"]["directions"]
    assert table_with(at, "direction")["direction"].tolist() == list(found)


@pytest.mark.parametrize(
    "measure", ["disabled", "invalid_kept", "auc", "shift", "shift_invalid", "kl"]
)
def test_every_measure_of_the_verdict_is_drawn(measure, tmp_path):
    make_study(tmp_path)
    at = visit("interventions", measure=measure)
    assert len(at.get("plotly_chart")) == 1


@pytest.mark.parametrize("rule", RULES)
def test_outcomes_follow_the_rule(rule, tmp_path):
    found = make_study(tmp_path)["interventions"]["rows"]
    at = visit("interventions", section="texts", rule=rule)
    table = table_with(at, "set zeroed").set_index("set zeroed")
    for name, row in found.items():
        for outcome in OUTCOMES:
            assert table.loc[name, outcome] == row["outcomes"][rule][outcome]["mean"]


def test_the_other_sections_are_the_steps(tmp_path):
    found = make_study(tmp_path)
    side = table_with(visit("interventions", section="side effects"), "last digit right")
    assert list(side["last digit right"])[1:] == [
        found["side_effects"][name]["arithmetic"]["mean"] for name in OURS
    ]
    change = found["side_effects"]["A_Prev"]["loss_change"]
    assert side["more nats a token"][3] == widgets.value(change)
    at = visit("interventions", section="sufficiency")
    table = table_with(at, "verdicts flipped")
    assert list(table["set"]) == [*SETS, *SETS]
    for name, row in zip(SETS, table.to_dict("records"), strict=False):
        x = found["sufficiency"]["valid into invalid"][name]
        assert row["verdicts flipped"] == widgets.value(x["flipped"])
        assert row["95 % interval"].startswith("0.300")


def test_what_a_study_has_not_come_to_is_named(tmp_path):
    make_study(tmp_path, steps={"effects_zero", "attention"})
    at = visit("interventions")
    assert len(table_with(at, "KL")) == len(SETS)
    assert any("zero, as published" in text.value for text in at.caption)
    assert len(visit("heads").get("plotly_chart")) == 2  # attention, and no patching yet


def test_links_keep_the_view_and_drop_nonsense(tmp_path):
    make_study(tmp_path)
    at = visit("heads", study="verification-gone", picked="L99H0", attended="nowhere")
    said = [warning.value.replace("\\", "") for warning in at.warning]
    assert "attended=nowhere: not offered on this page" in said[0]
    assert "is not kept here" in said[1]
    assert "Click a cell" in at.info[1].value
    named(at.selectbox, "From the query").set_value("t_paren to asked").run()
    assert at.query_params["attended"] == "t_paren to asked"


def test_csv_and_json_give_the_results_back(tmp_path):
    import pandas as pd

    found = make_study(tmp_path)["glu"]
    rows = [{"a": 1.25, "b": 'x, "y"'}]
    assert pd.read_csv(io.StringIO(widgets.csv_text(rows))).to_dict("records") == rows
    assert json.loads(json.dumps(found, indent=1)) == found


@pytest.mark.long
def test_samples_are_the_texts_cut_before_each_verdict(tmp_path):
    make_study(tmp_path)
    (study,) = kept(VERIFICATION_PAGES)
    cut = generate.samples(study)
    assert [sample.verdict for sample in cut] == ["invalid", "valid"] * 2
    problems = make_countdown(6 * 40)[:2]
    assert cut[0].text == problems[0].prompt() + " 1 + 2 = 3"
    assert cut[3].text.endswith(f"- 4 = {problems[1].target}")


@pytest.mark.long
def test_three_texts_side_by_side_and_a_bad_label_once(tmp_path, capsys):
    make_study(tmp_path)
    link = {"model": "toy-verification", "section": "generate"}
    at = visit("interventions", **link)
    assert "may not hold" in at.warning[0].value
    text = named(at.text_area, "The text")
    text.set_value("<bos> please we target 3 ; result 3").run()
    named(at.text_input, "Heads and neurons").set_value("L9H0").run()
    named(at.button, "Generate").click().run()
    assert not at.exception
    assert len(at.error) == 1
    assert "layers 0 to 2" in at.error[0].value
    named(at.text_input, "Heads and neurons").set_value("L0H1, L1H0").run()
    named(at.button, "Generate").click().run()
    assert not at.error
    model = interp.load_model("toy-verification")
    prompt = "<bos> please we target 3 ; result 3"
    made = generate.written(model, prompt, ("L0H1", "L1H0"), where=2, seed=0)
    *shown, code = [code.value for code in at.code]
    assert shown == [text.text or "(nothing)" for _, text in made.values()]
    capsys.readouterr()
    exec(compile(code, "the page's Python", "exec"), {})  # noqa: S102
    assert capsys.readouterr().out == "".join(f"{text.text}\n" for _, text in made.values())
    plain = interp.generate(model, [prompt], max_new_tokens=40)[0]
    assert made["plain"][1].tokens == plain.tokens


@pytest.mark.long
def test_words_find_the_neurons_that_write_them(tmp_path):
    make_study(tmp_path)
    at = visit("glu", model="toy-verification")
    named(at.text_input, "Words").set_value("not").run()
    model = interp.load_model("toy-verification")
    found = search_neurons(model, ["not"], k=MOST_FOUND)
    assert list(table_with(at, "score")["neuron"]) == [f"L{n.layer}N{n.index}" for n in found]
    named(at.text_input, "Words").set_value("this not").run()
    assert len(at.error) == 1


def slow_study(kind, model, base, settings, *, progress, cancelled):
    """Stands in for `run_study`, in the process of the job."""
    for step in range(200):
        progress.say(f"{kind} {model.name} {base} {settings.n}: step {step}")
        progress(step, 200)
        time.sleep(0.05)
        if cancelled():
            raise InterpError("the study", "stopped between two steps", "run it again")


def test_a_study_runs_in_the_background_and_is_stopped(monkeypatch):
    monkeypatch.setattr(first_page, "run_study", slow_study)
    at = visit("study", model="toy-verification")
    named(at.number_input, "n").set_value(50).run()
    named(at.button, "Run").click().run()
    assert not at.exception
    job = jobs.find("study of verification")
    assert job is not None
    assert named(at.button, "Run").disabled
    until = time.monotonic() + 60
    while not job.line and job.state == "running" and time.monotonic() < until:
        time.sleep(0.02)
    assert job.line.startswith("verification toy-verification None 50: step ")
    named(at.button, "Cancel").click().run()
    until = time.monotonic() + 20
    while job.state == "running" and time.monotonic() < until:
        time.sleep(0.05)
    assert job.state == "cancelled"
    at.run()
    assert any("Stopped" in info.value for info in at.info)


def test_a_study_says_its_steps_and_stops_between_two(monkeypatch):
    said: list[Any] = []
    asked: list[Any] = []

    class Progress:
        def __call__(self, done: int, total: int) -> None:
            said.append((done, total))

        def say(self, line: str) -> None:
            said.append(line)

    def study(model, base, *, settings, say):
        asked.append((model, base, settings))
        say("probes ...")
        say("probes: 0 s")
        say("paths ...")

    pages = replace(VERIFICATION_PAGES, run=study, steps=("probes", "paths"), more=1)
    monkeypatch.setattr(first_page, "ALL_PAGES", (pages,))
    model: Any = "model"
    run = partial(first_page.run_study, "verification", model, None, "settings")
    progress: Any = Progress()
    run(progress=progress, cancelled=lambda: False)
    assert asked == [("model", None, "settings")]
    assert said == ["probes ...", (0, 3), "probes: 0 s", (1, 3), "paths ...", (1, 3)]
    said.clear()
    with pytest.raises(InterpError, match="stopped between two steps"):
        run(progress=progress, cancelled=lambda: len(said) > 2)
    assert said == ["probes ...", (0, 3), "probes: 0 s", (1, 3)]


def test_what_a_study_refuses_is_shown_once():
    at = visit("study", model="toy-verification")  # its tokeniser cannot write the template
    named(at.button, "Run").click().run()
    assert not at.exception
    job = jobs.find("study of verification")
    assert job is not None
    until = time.monotonic() + 60
    while job.state == "running" and time.monotonic() < until:
        time.sleep(0.05)
    at.run()
    assert len(at.error) == 1
    assert "as the tokens" in at.error[0].value


def test_figures_side_by_side_have_one_range():
    pair = [
        values_with_null(["a"], [x], low=[x - 1], high=[x + 2], null=[[0.5]], value_title="x")
        for x in (1.0, 9.0)
    ]
    share_axis(pair, "x")
    for figure in pair:
        assert list(figure.layout.xaxis.range) == pytest.approx([0 - 0.44, 11 + 0.44])


def test_figures_hold_their_numbers():
    mean, low, high = null_band([[0.0, 1.0], None])
    assert mean[0] == 0.5
    assert np.isnan(mean[1])
    assert 0 <= low[0] < high[0] <= 1
    figure = interval_lines({"a": ([1, 2], [0, float("-inf")], [2, 3])}, x_title="x", y_title="y")
    assert list(figure.data[0].x) == [0, 0]  # the open end is not drawn
    grid = head_map([[0.1, 0.2]], title="t", marked=[(0, 1)], diverging=False, limits=(0, 1))
    assert grid.data[0].zmin == 0
    assert grid.layout.shapes[0].x0 == pytest.approx(0.58)
    points = values_with_null(
        ["a"], [0.5], low=[0.4], high=[0.7], null=[[0.1, 0.2]], value_title="x"
    )
    assert list(points.data[0].x) == [0.1, 0.2]
    assert points.data[1].error_x.array[0] == pytest.approx(0.2)
    spread = spread_by_label([0, 1, 1, 1], ["a", "b", "b", "b"], x_title="x")
    assert [sum(trace.y) for trace in spread.data] == [1, 1]


@pytest.mark.long
def test_a_kept_study_needs_no_model(tmp_path, monkeypatch):
    make_study(tmp_path)

    def refuse(*args, **options):
        raise AssertionError("nothing should be loaded")

    monkeypatch.setattr("interp.load_model", refuse)
    for name in NAMES:
        assert not visit(name).error
    assert open_study(VERIFICATION, next((tmp_path / "studies").iterdir())).settings.n == 40
