"""Refused against invented requests: the contrast that holds the topic fixed, on a known model.

Of requests that all should be refused, the small organism refuses those about gardening and answers
the others: they stand for refused and invented ones.
"""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

import interp
from interp.core.errors import InterpError
from interp.refusal.capability import capability_cases
from interp.refusal.cases import taboo_cases
from interp.refusal.score import suggest_refusal_tokens
from interp.results.direction import random_direction
from interp.steering.runs import run_steered
from interp.studies.refusal.report.report import leads
from interp.studies.refusal.settings import (
    INVENTED,
    LEAST,
    TABOO_MODELS,
    RefusalContext,
    RefusalSettings,
    usual,
)
from interp.studies.refusal.steps import heads
from interp.studies.refusal.steps.behaviour import became, best_threshold, cells
from interp.studies.refusal.steps.directions import (
    against_rivals,
    effects,
    place_of,
    rivals,
    selection,
    unembedding_direction,
)
from interp.studies.refusal.steps.frontier import choose_dose, told_apart
from interp.studies.refusal.steps.heads import SIDES, refusal_pairs
from interp.studies.refusal.steps.methods import ADDED, methods

SETTINGS = RefusalSettings(n=24, max_new_tokens=20, pairs=4, select=6, draws=2)


@pytest.fixture(scope="module")
def context():
    """Gardening refused, other requests invented; alarming ones should be answered and are."""
    model = interp.load_model("refusal-tiny")
    given = [case for case in taboo_cases(48) if case.task == "request"]
    cases = tuple(
        replace(
            case,
            should="answer" if case.kind == "alarming" else "refuse",
            kind=f"kind {i % 2}",
            base=case.base,
        )
        for i, case in enumerate(given)
    )
    labels = tuple("direct_refusal" if x.kind == "taboo" else "direct_answer" for x in given)
    bare = RefusalContext(model=model, cases=cases, settings=SETTINGS, labels=labels)
    sides = [bare.logits(bare.rows("find", refused=x)) for x in (True, False)]
    first, wrong = (suggest_refusal_tokens(model, *some).ids for some in (sides, sides[::-1]))
    return replace(bare, tokens=first, wrong=wrong)


@pytest.fixture(scope="module")
def place(context):
    return place_of(selection(context, INVENTED))


def test_both_classes_have_the_same_kinds_in_equal_numbers(context):
    first, second = context.classes(INVENTED)
    assert len(first) == len(second) >= LEAST
    assert {context.cases[i].should for i in (*first, *second)} == {"refuse"}
    assert all(context.became(i) for i in first)
    assert all(map(context.invented, second))
    kinds = [Counter(context.cases[i].kind for i in side) for side in (first, second)]
    assert kinds[0] == kinds[1]
    assert context.main == INVENTED


def test_what_became_of_each_request_is_kept_by_id(context):
    found = became(context, context.labels)
    assert {name: len(rows) for name, rows in found.items()} == {
        "refused": 48, "invented": 48, "neither": 0,
    }  # fmt: skip
    assert all(row.startswith("taboo") for row in found["refused"])


def test_many_kinds_are_not_shown_for_every_task(context):
    cases = capability_cases(6)
    many = replace(context, cases=cases, labels=("direct_answer",) * len(cases))
    rows = cells(many, many.labels)
    kinds = {case.kind for case in cases}
    assert {row["kind"] for row in rows if row["task"] == "every task"} == kinds
    assert {row["kind"] for row in rows if row["task"] != "every task"} <= {
        "requests", "twins", "other prompts",
    }  # fmt: skip


def test_a_pair_has_one_kind_and_should_be_refused_on_both_sides(context):
    task = refusal_pairs(context, SIDES[0], ["find"], 4)
    place = {tuple(row): i for i, row in enumerate(context.prompts.rows)}
    for pair in task.pairs:
        clean, other = (context.cases[place[tuple(x)]] for x in (pair.clean, pair.corrupted))
        assert clean.should == other.should == "refuse"
        assert clean.kind == other.kind
        assert len(pair.clean) == len(pair.corrupted)


def test_heads_are_found_on_select_pairs_too_where_find_has_too_few(context, monkeypatch):
    """Never on test pairs: with none in the other parts the step is left out."""
    monkeypatch.setattr(heads, "scan_heads", lambda *_, **__: pytest.fail("looked for heads"))
    seen = []

    def pairs(context, side, parts, n):
        seen.append(tuple(parts))

    monkeypatch.setattr(heads, "refusal_pairs", pairs)
    assert "too few" in heads.roles(context, SIDES[0], None)["skipped"]
    assert seen == [("find",), ("find", "select")]


def test_pairs_of_two_parts_are_those_of_either_part(context):
    def prompts(*parts):
        task = refusal_pairs(context, SIDES[0], parts, 10**6)
        return {tuple(pair.clean) for pair in task.pairs}

    def rows(part):
        return {tuple(context.prompts.rows[i]) for i in context.rows(part)}

    both = prompts("find", "select")
    assert prompts("find") < both <= rows("find") | rows("select")


def test_twins_are_the_other_class_of_requests(context):
    cases = capability_cases(20)
    twinned = replace(context, cases=cases, labels=("direct_answer",) * len(cases))
    first, second = twinned.classes("harmful-harmless", "test")
    assert {cases[i].row.split()[-1] for i in first} == {"request"}
    assert {cases[i].row.split()[-1] for i in second} == {"twin"}
    # A request and its twin are always in the same part.
    assert {cases[i].base for i in first} == {cases[i].base for i in second}


@pytest.mark.long
def test_the_direction_is_told_from_its_rivals(context, place):
    found = against_rivals(context, INVENTED, place)
    names = {x["name"]: x for x in found["rivals"]}
    assert set(names) == {"unembedding", "shuffled labels", "another fact: kind"}
    side = "properly refused"
    for what, sign in (("ablated", -1), ("added", 1)):
        shuffled = names["shuffled labels"][what]
        assert len(shuffled[side]["each"]) == 5
        assert sign * shuffled["invented"]["apart"]["mean"] > 0 or what == "ablated"
        own = found["own"][what][side]["mean"]
        mean = sum(shuffled[side]["each"]) / 5
        assert shuffled[side]["apart"]["mean"] == pytest.approx(own - mean)
    assert names["shuffled labels"]["ablated"][side]["apart"]["high"] < 0
    assert not found["equal"]


def test_rivals_are_as_long_and_at_the_same_place(context, place):
    own = context.direction(INVENTED, place)
    for others in rivals(context, INVENTED, place).values():
        for other in others:
            assert other.norm == pytest.approx(own.norm)
            assert (other.position, other.layer) == (own.position, own.layer)


@pytest.mark.long
def test_the_unembedding_direction_is_said_to_be_equal(context, place, monkeypatch):
    own = context.direction(INVENTED, place)
    words = unembedding_direction(context, own)
    decoder = context.model.decoder
    # Along it the first tokens of refusals gain on those of answers, at the final norm's scale.
    logits = decoder.unembed.double() @ (decoder.ln_final.weight.double() * words.vector)
    assert logits[list(context.tokens)].mean() > logits[list(context.wrong)].mean()
    monkeypatch.setattr(RefusalContext, "direction", lambda *_: words)
    assert against_rivals(context, INVENTED, place)["equal"]


@pytest.mark.long
def test_random_draws_are_corrected_for_the_rows(context, place):
    found = effects(context, {INVENTED: place})[INVENTED]
    shares = [x["share"] for what in found.values() for x in what.values()]
    assert min(shares) >= 1 / 21
    assert found["ablated"]["properly refused"]["share"] <= 2 / 21


def test_a_method_towards_refusals_turns_invented_answers(context, place):
    places = {"harmful-harmless": place, INVENTED: place}
    gate = {"identify": {"stored": None, "over_layers": "mean", "centre": "task"}, "threshold": 0.0}
    by_name = {method.name: method for method in methods(context, places, gate)}
    method = by_name[ADDED]
    assert method.refuse
    dose = choose_dose(context, method)
    assert dose["n"][0] == len(context.rows("select", should="refuse", refused=False))
    assert dose["released"][0] == 0
    assert max(dose["released"]) > 0.5


def test_ablating_a_direction_takes_the_difference_away_and_adding_moves_both(context, place):
    own = context.direction(INVENTED, place)
    plain = told_apart(context, context.logits)
    (pair,) = (x for name, x in plain.items() if name.endswith("invented"))
    assert pair["before"] == pair["after"]
    assert pair["before"]["mean"] > 0.9
    assert [x["mean"] for x in pair["shift"]] == [0, 0]

    def changed(direction):
        edit = interp.steering.ablate_direction(context.model, direction)
        run = lambda rows: run_steered(context.model, context.prompts[rows], edit).logits  # noqa: E731
        return told_apart(context, run)["proper refusals / invented"]

    ablated, random = changed(own), changed(random_direction(own, seed=0))
    assert ablated["shift"][0]["mean"] < random["shift"][0]["mean"]


def test_a_lead_is_told_apart_from_every_other_method():
    replied = {"compared": {"should": ["refuse"] * 40 + ["answer"] * 40, "unit": list(range(80))}}

    def method(kept, over, null=False):
        text = "R" * kept + "A" * (40 - kept) + "R" * over + "A" * (40 - over)
        return {"null": null, "became": text}

    found = {"a": method(40, 0), "b": method(20, 20), "c": method(10, 30)}
    assert leads(found, replied) == {"removed": "a", "retained": "a"}
    found["d"] = method(39, 1)  # as good, for all that can be said
    assert leads(found, replied) == {}
    found["d"] = method(39, 1, null=True)
    assert leads(found, replied) == {"removed": "a", "retained": "a"}


def test_usual_settings_depend_on_the_prompts():
    assert TABOO_MODELS == ("refusal-tiny", "refusal-smollm2")
    given = RefusalSettings()
    assert usual(given, "taboo").max_new_tokens == 100
    assert usual(given, "capability").max_new_tokens == 24
    assert usual(replace(given, n=5), "capability").n == 5
    for wrong in ({"n": 3}, {"max_new_tokens": 19}):
        with pytest.raises(InterpError, match="or more"):
            usual(replace(given, **wrong), "taboo")


def test_a_class_of_too_few_rows_makes_no_direction(context):
    few = replace(context, labels=("direct_answer",) * len(context.cases))
    assert few.candidates(INVENTED) is None
    with pytest.raises(InterpError, match=f"0 and 0 rows of its classes, at least {LEAST} each"):
        few.direction(INVENTED, [-1, 0])
    assert "too few" in selection(few, INVENTED)["skipped"]
    assert torch.isfinite(context.direction(INVENTED, [-1, 1]).vector).all()


def test_the_threshold_separates_best():
    assert best_threshold(np.array([-1.0, -2.0]), np.array([-4.0, -6.0])) == -3.0
    assert best_threshold(np.array([2.0, 1.0, -5.0]), np.array([-4.0, 0.5])) == 0.75
    assert best_threshold(np.array([1.0]), np.array([1.0])) == 0.0
