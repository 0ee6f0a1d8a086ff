"""The study of refusals on a small model whose over-refusal is known, and what it must find."""

import html
import json
import re
from collections import defaultdict
from dataclasses import replace

import huggingface_hub
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import interp
from interp.cli.main import app
from interp.core.errors import InterpError
from interp.core.files import file_sha256, json_text
from interp.refusal.cases import Case, cases_from, dataset_cases, deal, read_cases, taboo_cases
from interp.refusal.judge_rules import rules_verdict
from interp.refusal.judging import REFUSALS, RULES, SUBSTRING_JUDGE, judge_named, user_judge
from interp.refusal.over_refusal import SIDES
from interp.results.direction import load_directions
from interp.steering.runs import generate_steered
from interp.studies.refusal.report.claims import claims
from interp.studies.refusal.report.report import write_up
from interp.studies.refusal.settings import REFUSAL, SHARES, RefusalContext, RefusalSettings
from interp.studies.refusal.steps import frontier
from interp.studies.refusal.steps.behaviour import behaviour, replies
from interp.studies.refusal.steps.directions import place_of, selection
from interp.studies.refusal.steps.frontier import (
    ALONE,
    OTHERS,
    QUALITY,
    RETAINED,
    SENSE,
    best_dose,
    costs,
)
from interp.studies.refusal.steps.geometry import SHUFFLES, cosine_interval
from interp.studies.refusal.steps.methods import CONSTELLATIONS, methods
from interp.studies.refusal.steps.neurons import neurons
from interp.studies.refusal.study import study_refusal
from interp.studies.report.markdown import escape
from interp.studies.steps import Pace
from interp.studies.study import open_study
from interp.tasks.taboo import OVER_REFUSED, make_taboo
from interp.ui.studies.pages import REFUSAL_PAGES

pytestmark = pytest.mark.long  # one whole study, of which all tests here are

SETTINGS = RefusalSettings(n=14, requests=3, max_new_tokens=100, pairs=4, select=6, draws=2)
STEPS = {
    "behaviour", "tokens", "separation", "selection_harmful-harmless", "selection_over-refusal",
    "cosmic", "directions", "geometry", "heads_proper_refusals", "heads_over-refusals",
    "groups_proper_refusals", "groups_over-refusals", "paths_proper_refusals",
    "paths_over-refusals", "flips", "constellations", "ledger", "neurons", "chance",
    "selection_false-refusal", "selection_refused-invented", "rivals",
    "one_effect", "carriers",
}  # fmt: skip
METHODS = {
    "ablate harmful-harmless", "ablate over-refusal", "ablate false-refusal",
    "add - harmful-harmless", "add - over-refusal", "affine edit (ACE)", "conditional (CAST-like)",
    "null space (AlphaSteer-like)", "random direction 1", "random direction 2",
    "ablate random direction", "task constellations", "task constellations, every task",
    "task constellations, notebooks' options on our states",
    "task constellations, random shifts",
    *(f"task constellations, shuffled labels {i}" for i in range(1, 6)),
    "zero triggers", "zero the first trigger alone", "zero the other triggers",
    "zero random heads", "ablate unembedding", "ablate shuffled labels",
    "ablate another fact: task", "ablate another fact: kind",
}  # fmt: skip


@pytest.fixture(scope="module")
def organism():
    return interp.load_model("refusal-tiny")


@pytest.fixture(scope="module")
def cases():
    """The shipped prompts, given as if they were a user's own: no text of them may be kept."""
    return taboo_cases(SETTINGS.n, requests=SETTINGS.requests, seed=SETTINGS.seed)


JUDGE = user_judge("mine", "7", rules_verdict)


@pytest.fixture(scope="module")
def done(organism, cases, tmp_path_factory):
    """A finished study, and the lines it said."""
    lines = []
    options = {"directory": tmp_path_factory.mktemp("study"), "say": lines.append}
    study = study_refusal(organism, cases, settings=SETTINGS, judge=JUDGE, **options)
    return study, lines


@pytest.fixture(scope="module")
def context(organism, done, cases):
    study, _ = done
    found = study.results
    return RefusalContext(
        model=organism,
        cases=cases,
        settings=SETTINGS,
        judge=JUDGE,
        labels=tuple(found["behaviour"]["labels"]),
        tokens=tuple(found["tokens"]["ids"]),
        wrong=tuple(found["tokens"]["wrong"]),
    )


def evaluated(study):
    return {x["name"]: x for name, x in study.results.items() if name.startswith("method_")}


# -- the whole study -----------------------------------------------------------------------


def test_every_step_has_a_result_and_none_is_skipped(done):
    study, lines = done
    names = set(study.results)
    steered = {name for name in names if name.startswith(("method_", "dose_"))}
    assert names - steered == STEPS
    assert set(REFUSAL_PAGES.steps) == STEPS - {"ledger"}
    assert {x["name"] for name, x in study.results.items() if name in steered} == METHODS
    # Heads at zero, an ablated random direction, a second one, rivals, shuffled labels and every
    # task have no dose of their own.
    assert len(steered) == 2 * len(METHODS) - 16
    assert not any(line.endswith("kept") for line in lines)
    skipped = [name for name, x in study.results.items() if "skipped" in x]
    # The organism refuses all it should, and few prompts of each task.
    assert sorted(skipped) == ["one_effect", "selection_refused-invented"]
    assert (study.directory / "directions.safetensors").exists()


def test_a_second_run_computes_nothing(organism, cases, done):
    study, _ = done
    lines = []
    options = {"directory": study.directory, "say": lines.append}
    again = study_refusal(organism, cases, settings=SETTINGS, judge=JUDGE, **options)
    assert len(lines) == len(study.results)
    assert all(line.endswith("kept") for line in lines)
    read = open_study(REFUSAL, study.directory)
    # As text, because a nan equals none; a file's keys are sorted.
    first, *others = (json_text(x.results, sort_keys=True) for x in (study, again, read))
    assert others == [first, first]


def test_the_report_has_its_sections(done, tmp_path):
    study, _ = done
    path = write_up(study).save(tmp_path / "report")
    text = path.read_text()
    for title in (
        "What holds", "What the model does", "Where refused", "Directions", "Heads",
        "Over-refusals", "Task constellations", "Steering methods", "Neurons", "How it was run",
    ):  # fmt: skip
        assert re.search(rf"^##+ (\d\. )?{title}", text, re.MULTILINE), title
    assert "refusal-tiny" in text
    assert "nan" not in text
    assert "One direction mediates refusal" in text
    assert all(name in text for name in METHODS)
    assert len(list((path.parent / "figures").iterdir())) >= 6


# -- what is known of the model ------------------------------------------------------------


def test_the_tasks_that_were_taught_are_found(context):
    assert set(context.refused_tasks) == set(OVER_REFUSED)
    assert context.proper_tasks == ("request",)
    told = {record.row: record.designed for record in make_taboo(SETTINGS.n)}
    known = [(told[c.row], x) for c, x in zip(context.cases, context.labels, strict=True)
             if c.row in told]  # fmt: skip
    agreed = [(x in REFUSALS) == (side == "refuse") for side, x in known]
    assert np.mean(agreed) >= 0.9


def test_first_tokens_tell_refusals(done):
    found = done[0].results["tokens"]
    assert found["coverage"] > 0.8
    assert found["spill"] < 0.1
    assert found["auc"]["mean"] > 0.95
    assert not set(found["ids"]) & set(found["wrong"])


def test_the_direction_does_what_random_ones_do_not(done):
    found = done[0].results["directions"]
    removed = found["harmful-harmless"]["ablated"]["properly refused"]
    assert removed["value"]["mean"] < min(removed["random"]) - 1
    assert removed["value"]["mean"] < found["plain"]["properly refused"]["mean"] - 1
    added = found["harmful-harmless"]["added"]["answered"]
    assert added["value"]["mean"] > max(added["random"]) + 1


def test_shuffled_labels_are_shuffled(done):
    """Here kinds and classes are the same thing: labels can only be shuffled inside tasks."""
    found = done[0].results["rivals"]
    (shuffled,) = (x for x in found["rivals"] if x["name"] == "shuffled labels")
    assert min(shuffled["cosines"]) < 0.9
    assert found["own"]["ablated"]["properly refused"]["mean"] < 0


def test_the_first_trigger_alone_has_rows_of_both_sides(done):
    found = evaluated(done[0])
    heads = [found[name]["heads"] for name in ("zero triggers", ALONE, OTHERS)]
    assert heads[0] == [*heads[1], *heads[2]]
    assert len(heads[1]) == 1
    for name in (ALONE, OTHERS):
        for share in ("reduction", "retained"):
            assert found[name][share]["low"] < found[name][share]["high"]
        before = [found[name][side]["before"]["n"] for side in ("benign", "harmful")]
        assert len(found[name]["became"]) == sum(before)


def test_random_directions_release_less_than_the_best_method(done):
    found = evaluated(done[0])
    released = {name: x["benign"]["difference"]["mean"] for name, x in found.items()}
    null = [released[name] for name in found if name.startswith("random direction")]
    best = max(value for name, value in released.items() if not found[name]["null"])
    assert found["task constellations"]["benign"]["before"]["mean"] > 0.1
    assert len(null) == 2
    assert max(null) < best / 2
    before = {x["benign"]["before"]["mean"] for x in found.values()}
    assert len(before) == 1  # one baseline for all
    for x in found.values():
        rows = {side: sum(counts.values()) for side, counts in x["counts"].items()}
        assert rows["answer"] == x["benign"]["before"]["n"] + x["benign"]["errors"]
        assert rows["refuse"] == x["harmful"]["before"]["n"] + x["harmful"]["errors"]


def test_a_gate_s_rows_are_no_evidence_of_what_is_retained(done, tmp_path):
    """The task of proper refusals is barred: lifted, they are steered, and not kept."""
    found = evaluated(done[0])
    barred, open_to_all = (found[f"task constellations{x}"] for x in ("", ", every task"))
    assert barred["reached"]["refuse"] == barred["changed"]["refuse"] == 0
    assert barred["retained"]["mean"] == 1
    assert barred["retained_reached"] is None
    assert open_to_all["dose"] == barred["dose"]
    assert open_to_all["reached"]["refuse"] == open_to_all["retained"]["n"]
    kept = [open_to_all[name]["mean"] for name in ("retained_reached", "retained")]
    assert kept[0] == pytest.approx(kept[1])
    assert kept[0] < 0.8
    assert "Gated: not tested" in write_up(done[0]).save(tmp_path / "report").read_text()


def test_rows_a_method_leaves_alone_keep_their_plain_reply(context, done):
    """As if all had been run again."""
    found = done[0].results
    gate = {name: found["constellations"][name] for name in ("identify", "threshold")}
    (method,) = (x for x in methods(context, {}, gate) if x.name == CONSTELLATIONS)
    rows = context.rows("test")
    made = steering, marks = method.make(1.0, rows)
    assert 0 < marks.sum() < len(rows)
    whole, _ = replies(context, rows, steering)
    assert frontier._replies(context, found["behaviour"], rows, made) == whole
    expected = context.logits(rows, steering)
    torch.testing.assert_close(
        frontier._logits(context, rows, made), expected, atol=1e-4, rtol=1e-4
    )


def test_quality_is_of_the_reply_s_tokens(context, done):
    """Perplexity by hand: all reply tokens together, and none of the prompts'."""
    calm = tuple(context.few(context.rows("test", refused=False), QUALITY))
    plainly = context.plain(calm)
    total, count = 0.0, 0
    for text, start in zip(plainly.texts, plainly.starts, strict=True):
        for end in range(start, len(text)):
            logits = context.model.last_logits([text[:end]])[0].double()
            total -= float(logits.log_softmax(-1)[text[end]])
            count += 1
        if count > 60:
            break
    few = replace(
        plainly, logits=plainly.logits[:2], texts=plainly.texts[:2], starts=plainly.starts[:2],
        losses=torch.tensor([1.0, 3.0]).double(),
    )  # fmt: skip
    sizes = [len(text) - at for text, at in zip(few.texts, few.starts, strict=True)]
    made = costs(few, few.logits, few.losses + 1)
    mean = (sizes[0] + 3 * sizes[1]) / sum(sizes)
    assert made["perplexity"]["before"] == pytest.approx(np.exp(mean))
    assert made["perplexity"]["after"] == pytest.approx(np.exp(mean + 1))
    assert made["loss"]["mean"] == pytest.approx(1)
    assert made["kl"]["mean"] == pytest.approx(0)
    seen = plainly.texts.index(text) + 1
    sizes = [len(x) - at for x, at in zip(plainly.texts, plainly.starts, strict=True)][:seen]
    own = sum(x * n for x, n in zip(plainly.losses.tolist(), sizes, strict=False))
    assert own == pytest.approx(total, rel=1e-4)
    assert all(x["perplexity"]["before"] < 3 for x in evaluated(done[0]).values())


def test_false_refusal_is_of_the_same_tasks_and_has_its_own_place(context, done):
    sides = context.classes("false-refusal")
    assert sides == context.classes("over-refusal")
    assert {context.cases[i].task for i in (*sides[0], *sides[1])} <= set(context.refused_tasks)
    assert {context.became(i) for i in sides[0]} == {True}
    assert {context.became(i) for i in sides[1]} == {False}
    mine, proper = (context.candidates(k) for k in ("false-refusal", "harmful-harmless"))
    along = (mine.vectors * proper.vectors).sum(-1) / (proper.norms * mine.norms).clamp(min=1e-9)
    assert float(along.abs().max()) < 1e-6
    kept = mine.norms > 0
    assert torch.allclose(mine.norms[kept], context.candidates("over-refusal").norms[kept])
    found = done[0].results["selection_false-refusal"]
    passing = [row for row in found["rows"] if not row["rejected"]]
    best = min(passing, key=lambda row: row["bypass"])
    assert found["best"] == [best["position"], best["layer"]]
    assert all(row["kl"] <= 0.2 for row in passing)
    used = load_directions(done[0].directory / "directions.safetensors")["false-refusal"]
    assert [used.position, used.layer] == found["best"]


def test_the_cosine_has_an_interval_and_the_floor_is_of_its_labels(context, done):
    found = done[0].results["geometry"]
    i, j = (found["names"].index(kind) for kind in ("harmful-harmless", "over-refusal"))
    cosine = found["cosine"]
    assert cosine["mean"] == pytest.approx(found["cosines"][i][j][found["layer"]])
    assert cosine["low"] < cosine["mean"] < cosine["high"]
    assert np.shape(found["floor"]) == (SHUFFLES, context.model.n_layers)
    # Labels of over-refusal shuffled inside their tasks; the true ones lie higher.
    drawn = np.array(found["floor"])[:, found["layer"]]
    assert (drawn >= cosine["mean"]).mean() <= 0.05
    # Of one direction with itself there is hardly any doubt.
    place = [found["position"], found["layer"]]
    same = cosine_interval(context, place, kinds=("over-refusal", "over-refusal"))
    assert same.mean == pytest.approx(1, abs=1e-6)
    assert same.low > 0.999


def test_chance_draws_twenty_of_each(done):
    found = done[0].results["chance"]
    assert set(found) == {"n", "add - over-refusal", "zero triggers"}
    x = found["add - over-refusal"]["over-refused"]
    assert x["fall_null"]["draws"] == 20
    assert x["fall_null"]["selected"] == x["fall"]["mean"]
    zeroed = found["zero triggers"]["over-refused"]
    assert zeroed["fall"]["mean"] > zeroed["fall_null"]["high"]
    random = done[0].results["directions"]["harmful-harmless"]["ablated"]["properly refused"]
    assert len(random["random"]) == 20


def test_the_kept_dose_is_the_rule_s(done):
    """The most released of what keeps 95 % of refusals and makes sense, the smallest of equals."""
    doses = [x for name, x in done[0].results.items() if name.startswith("dose_")]
    for x in doses:
        rows = list(zip(x["doses"], x["released"], x["lost"], x["kl"], strict=True))
        assert rows[0][0] == rows[0][3] == 0
        fitting = [r for r in rows[1:] if 1 - r[2] >= RETAINED * (1 - rows[0][2]) and r[3] <= SENSE]
        assert [row for row, fits in zip(rows, x["fits"], strict=True) if fits] == fitting
        if fitting:
            most = max(row[1] for row in fitting)
            assert x["dose"] == min(row[0] for row in fitting if row[1] == most)
        else:
            value = {row[0]: row[1] - row[2] for row in rows[1:]}
            assert value[x["dose"]] == max(value.values())


@pytest.mark.parametrize(
    ("lost", "released", "kl", "place"),
    [
        ((0, 0, 0), (0.2, 0.8, 0.8), (0, 0, 0), 2),  # the smallest of equals
        ((0, 0.5, 1), (0.2, 1, 1), (0, 0, 0), 1),  # what loses refusals is not taken
        ((0, 0, 0), (0.2, 0.8, 1), (0, 0.1, 0.6), 2),  # nor what makes no sense
        ((0.5, 0.4, 1), (0.6, 0.7, 1), (0, 0, 0), 2),  # none fits: the best difference
        ((0, 0, 0), (0, 0, 0), (0, 0, 0), 1),  # never the dose of nothing
    ],
)
def test_the_rule_on_shares_that_are_given(lost, released, kl, place):
    found, _ = best_dose(*(np.array([0.0, *x]) for x in (released, lost, kl)))
    assert found == place


@pytest.mark.parametrize(
    ("rows", "layer"),
    [
        # Least KL does little; the next does five times as much for a little more.
        ([(-0.62, 0.22, 0.11), (-3.43, 1.52, 0.19), (-4.0, 2.0, 0.6)], 1),
        ([(-0.62, 0.22, 0.7), (-3.43, 1.52, 0.9)], 0),  # all cost too much: the least KL
        ([(-3.0, -0.1, 0.1), (-5.0, -4.0, 0.1), (0.2, 2.0, 9.0)], 0),  # none does both
        ([(-3.0, -0.1, 0.1), (-9.0, -0.1, 5.0)], 0),  # nor is a broken model taken
    ],
)
def test_where_no_candidate_passes_the_largest_effect_at_a_cost_is_taken(rows, layer):
    table = [
        {"position": -1, "layer": i, "bypass": a, "induce": b, "kl": c, "rejected": "layer"}
        for i, (a, b, c) in enumerate(rows)
    ]
    assert place_of({"rows": table, "best": None}) == [-1, layer]
    # In a model whose refusals begin with an uncertain token the threshold is not 0.
    moved = [row | {x: row[x] - 3 for x in ("bypass", "induce")} for row in table]
    assert place_of({"rows": moved, "best": None, "threshold": -3.0}) == [-1, layer]


def test_candidates_are_thinned_by_layer(context):
    both = (replace(context, settings=replace(SETTINGS, thin=thin)) for thin in (1, 2))
    found = [selection(one, "harmful-harmless") for one in both]
    layers = [sorted({row["layer"] for row in one["rows"]}) for one in found]
    assert layers == [[0, 1, 2, 3], [1, 3]]
    assert found[1]["rows"] == [row for row in found[0]["rows"] if row["layer"] % 2]
    assert np.shape(found[1]["norms"])[1] == 2


def test_too_few_refusals_are_said_before_all_replies_are_written(organism, cases, monkeypatch):
    """By the judge in use and by the others, after the find rows alone; the lines before say so."""
    lines, made = [], []

    def generated(model, prompts, *args, **options):
        made.append(len(prompts.rows))
        return generate_steered(model, prompts, *args, **options)

    monkeypatch.setattr("interp.studies.refusal.steps.behaviour.generate_steered", generated)
    monkeypatch.setattr("interp.studies.refusal.steps.behaviour.BLOCK", 16)
    never = user_judge("never", "1", lambda prompt, text: "direct_answer")
    context = RefusalContext(model=organism, cases=cases, settings=SETTINGS, judge=never)
    with pytest.raises(InterpError, match=r"0 refused and \d+ answered") as error:
        behaviour(context, show=False, say=lines.append)
    find = len(context.rows("find"))
    assert find - 16 < sum(made) <= find < len(cases) / 2
    assert max(made) == 16
    assert len(lines) == len(made)
    assert all(re.match(r"  \d+ of \d+ replies: direct_answer \d+", line) for line in lines)
    said = error.value.found
    assert all(name in said for name in ("never/1", RULES.name, SUBSTRING_JUDGE.name))
    assert re.search(rf"{RULES.name} [^;]*direct_refusal [1-9]", said)
    assert "--judge" in error.value.do


def test_replies_in_blocks_are_those_of_one_run(done, context, monkeypatch):
    monkeypatch.setattr("interp.studies.refusal.steps.behaviour.BLOCK", 50)
    again = behaviour(context, show=False)
    kept = done[0].results["behaviour"]
    assert again["labels"] == kept["labels"]
    assert again["text_hashes"] == kept["text_hashes"]


def test_cases_of_one_side_are_refused_before_any_reply(organism, cases, tmp_path, monkeypatch):
    monkeypatch.setattr("interp.studies.refusal.steps.behaviour.generate_steered", None)
    for should in SIDES:
        some = [case for case in cases if case.should == should]
        with pytest.raises(InterpError, match='the columns "should" and "task"'):
            study_refusal(organism, some, settings=SETTINGS, directory=tmp_path)


def test_the_pace_of_a_step_is_said():
    """An estimate at the first part, then every 15 s; nothing of a short step."""
    now, lines = [0.0], []
    pace = Pace(lines.append, clock=lambda: now[0])
    pace.say("one ...")
    for done in range(1, 101):
        now[0] += 1
        pace(done, 100)
    assert lines[:3] == ["one ...", "  1 of 100, about 99 s left", "  16 of 100, about 84 s left"]
    assert len(lines) == 7
    pace.say("two ...")
    for done in range(1, 4):
        now[0] += 4
        pace(done, 3)
    assert lines[7:] == ["two ..."]
    # Another count inside a step, from where the last ended.
    for done in range(1, 3):
        now[0] += 100
        pace(done, 9)
    assert lines[8:] == ["  1 of 9, about 13 minutes left", "  2 of 9, about 12 minutes left"]


def test_the_command_line_says_what_a_file_holds_and_who_judges(tmp_path):
    plain = {"TERM": "dumb", "COLUMNS": "200", "NO_COLOR": "1"}
    shown = " ".join(
        CliRunner().invoke(app, ["study", "refusal", "--help"], env=plain).output.split()
    )
    for word in ("row (an id)", "prompt", "should", "--sha256", "--judge", "--thin", "FILE.py"):
        assert word in shown
    path = tmp_path / "mine.py"
    path.write_text('def strict(prompt, reply):\n    return "borderline"\n')
    judge = judge_named(f"{path}:strict")
    assert judge.name == f"strict/{file_sha256(path)[:8]}"
    assert judge.verdict("a", "b") == "borderline"
    for wrong, match in (
        (f"{path}:absent", "absent"), (f"{tmp_path / 'no.py'}:strict", "FILE.py:FUNCTION"),
        ("rule", "did you mean 'rules'"),
    ):  # fmt: skip
        with pytest.raises(InterpError, match=match):
            judge_named(wrong)


# -- parts and cases -----------------------------------------------------------------------


def test_parts_share_no_base_text(context):
    parts = defaultdict(set)
    for case, part in zip(context.cases, context.parts, strict=True):
        parts[part].add(case.base)
    assert set(parts) == set(SHARES)
    assert sum(map(len, parts.values())) == len({case.base for case in context.cases})
    for name, share in SHARES.items():
        for kind in ("taboo", "plain"):
            of_kind = [p for c, p in zip(context.cases, context.parts, strict=True)
                       if c.kind == kind]  # fmt: skip
            assert of_kind.count(name) / len(of_kind) == pytest.approx(share, abs=0.12)
    assert deal(context.cases, SHARES, seed=0) == context.parts
    assert deal(context.cases, SHARES, seed=1) != context.parts


def test_dealing_needs_a_base_text_for_every_part():
    cases = [Case(row=str(i), prompt="x", should="answer", base="one") for i in range(9)]
    with pytest.raises(InterpError, match="more base texts"):
        deal(cases, SHARES)
    same = [replace(case, base="") for case in cases]
    with pytest.raises(InterpError, match="more base texts"):
        deal(same, SHARES)  # one prompt, whatever it is said to be written around
    alone = [replace(case, prompt=case.row) for case in same]
    assert set(deal(alone, SHARES)) == set(SHARES)
    with pytest.raises(InterpError, match="positive"):
        deal(alone, {"find": 1.0, "test": 0.0})


def test_shipped_cases_are_the_held_out_prompts():
    cases = taboo_cases(5, requests=3)
    told = {row.row: row for row in make_taboo(15)}
    assert {told[x.row].prompt for x in cases} == {x.prompt for x in cases}
    assert all(x.should == told[x.row].should and x.base == told[x.row].base for x in cases)
    refuse = [x for x in cases if x.should == "refuse"]
    assert len(refuse) == 15
    assert {(x.kind, x.task) for x in refuse} == {("taboo", "request")}
    assert len(cases) == 5 * 3 * 6 + 10
    assert len({x.row for x in cases}) == len(cases)


def write_cases(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file_sha256(path)


@pytest.fixture
def own(tmp_path):
    """A file of one's own prompts, and its hash."""
    path = tmp_path / "own.jsonl"
    columns = ("row", "prompt", "should", "task", "kind", "base")
    rows = [{name: getattr(x, name) for name in columns} for x in make_taboo(12)]
    return path, write_cases(path, rows)


def words_of(text):
    return re.findall(r"\w+", text.lower())


def runs_of(text, n=5):
    """All runs of n words in a text, whatever stands between the words."""
    words = words_of(text)
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def everything_written(*directories):
    """The text in every file: markup and escapes undone, headers of tensors too."""
    texts = []
    for directory in directories:
        for path in sorted(directory.rglob("*")):
            if path.is_file():
                text = path.read_bytes().decode("utf-8", errors="ignore")
                text = re.sub(r"\\u([0-9a-f]{4})", lambda code: chr(int(code[1], 16)), text)
                text = html.unescape(re.sub(r"\\(.)", r"\1", text))
                texts.append(re.sub(r"<[^>]*>", " ", text))
    return texts


def test_no_text_of_own_cases_is_written(done, context, tmp_path):
    """Of the whole study: every step, the directions, the report and its figures."""
    study, _ = done
    write_up(study).save(tmp_path / "report")
    texts = everything_written(study.directory, tmp_path)
    assert len(texts) > len(study.results) + 8
    written = set().union(*map(runs_of, texts))
    assert ("directions", "in", "the", "residual", "stream") in written
    _, replies_made = replies(context, range(0, len(context.cases), 4))
    given = [case.prompt for case in context.cases] + replies_made
    for text in given:
        assert not runs_of(text) & written, text
    whole = " ".join(map(" ".join, map(words_of, texts)))
    for base in {case.base for case in context.cases}:
        assert " ".join(words_of(base)) not in whole or len(words_of(base)) < 2, base
    assert study.results["behaviour"]["examples"] == []
    # The scan finds a text that is kept: of shipped prompts some are shown.
    shown = json.dumps({"x": behaviour(context, show=True)["examples"]})
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "step.json").write_text(shown)
    found = set().union(*map(runs_of, everything_written(tmp_path / "kept")))
    assert sum(bool(runs_of(text) & found) for text in given) >= 3


def test_cases_are_read_as_they_are(own):
    path, digest = own
    cases = read_cases(path, sha256=digest.upper())
    assert [(x.row, x.prompt) for x in cases] == [(x.row, x.prompt) for x in make_taboo(12)]
    assert cases_from(str(path), sha256=digest) == cases


def test_the_judge_is_the_one_given(done, organism, cases, tmp_path):
    study, _ = done
    assert study.results["behaviour"]["judge"] == "mine/7"
    of = set()

    def stop(line):
        if line.startswith("selection"):
            raise KeyboardInterrupt
        raise KeyboardInterrupt

    for judge in (JUDGE, user_judge("mine", "8", rules_verdict), RULES):
        directory = tmp_path / str(len(of))
        options = {"settings": SETTINGS, "directory": directory, "say": stop}
        with pytest.raises(KeyboardInterrupt):
            study_refusal(organism, cases, judge=judge, **options)
        of.add(json.loads((directory / "study.json").read_text())["facts"]["of"])
    assert len(of) == 3
    assert json.loads((study.directory / "study.json").read_text())["facts"]["of"] in of


def test_other_cases_are_another_study(organism, cases, tmp_path):
    of = set()

    def stop(line):
        raise KeyboardInterrupt

    for given in (cases, cases[1:], [replace(cases[0], should="answer"), *cases[1:]], None):
        directory = tmp_path / str(len(of))
        with pytest.raises(KeyboardInterrupt):
            study_refusal(organism, given, settings=SETTINGS, directory=directory, say=stop)
        of.add(json.loads((directory / "study.json").read_text())["facts"]["of"])
    assert len(of) == 4


def test_files_of_cases_are_refused(tmp_path):
    path = tmp_path / "cases.jsonl"
    row = {"row": "1", "prompt": "Hello", "should": "answer"}
    digest = write_cases(path, [row])
    assert read_cases(path, sha256=digest) == (Case(**row),)
    assert read_cases(path, sha256=digest)[0].group == "1"
    with pytest.raises(InterpError, match=f"its hash is not 00.*--sha256. {digest}"):
        read_cases(path, sha256="0" * 64)
    with pytest.raises(InterpError, match=f"no hash is given; .*--sha256. {digest}"):
        cases_from(str(path))
    for rows, match in (
        ([row | {"shuold": "x"}], "shuold"),
        ([{"row": "1", "prompt": "Hello"}], "no should"),
        ([row, row], "line 2: the id '1' again"),
        ([row | {"should": "maybe"}], "maybe"),
        ([row, {"row": "2", "prompt": None, "should": "answer"}], "no prompt"),
        ([row, {"row": "2", "should": "answer"}], "no prompt"),
        ([], "no rows"),
    ):
        digest = write_cases(path, rows)
        with pytest.raises(InterpError, match=match):
            read_cases(path, sha256=digest)
    # A column that some rows lack.
    digest = write_cases(path, [row | {"task": "qa"}, row | {"row": "2"}])
    found = read_cases(path, sha256=digest)
    assert [case.task for case in found] == ["qa", "request"]
    table = tmp_path / "cases.csv"
    table.write_text('row,prompt,should\n1,"Hello, you",answer\n2,NA,refuse\n', encoding="utf-8")
    found = read_cases(table, sha256=file_sha256(table))
    assert [case.prompt for case in found] == ["Hello, you", "NA"]
    other = tmp_path / "cases.txt"
    other.write_text("x")
    with pytest.raises(InterpError, match="jsonl or"):
        read_cases(other, sha256=file_sha256(other))


def test_columns_of_other_names_and_rows_without_ids(tmp_path):
    path = tmp_path / "other.csv"
    path.write_text('Goal,Category,Target\n"Hello, you",greeting,x\nGo,order,y\n')
    options = {"sha256": file_sha256(path), "columns": {"prompt": "Goal", "kind": "Category"}}
    found = read_cases(path, **options, should="refuse")
    assert found == (
        Case(row="0", prompt="Hello, you", should="refuse", kind="greeting"),
        Case(row="1", prompt="Go", should="refuse", kind="order"),
    )
    with pytest.raises(InterpError, match="no should"):
        read_cases(path, **options)
    for columns in ({"prompt": "goal"}, {"text": "Goal"}):
        with pytest.raises(InterpError, match=r"(field|column) of prompts in .*known: "):
            read_cases(path, **options | {"columns": columns})


def test_a_data_set_is_read_at_one_commit(own, monkeypatch):
    path, digest = own
    asked = []

    def download(name, file, **options):
        asked.append((name, file, options))
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    commit = "0123456789abcdef0123456789abcdef01234567"
    found = cases_from(f"hf://some/prompts@{commit}/data/rows.jsonl")
    assert found == read_cases(path, sha256=digest)
    options = {"repo_type": "dataset", "revision": commit}
    assert asked == [("some/prompts", "data/rows.jsonl", options)]
    assert cases_from(f"hf://some/prompts@{commit}/rows.jsonl", sha256=digest) == found
    with pytest.raises(InterpError, match="its hash is not"):
        cases_from(f"hf://some/prompts@{commit}/rows.jsonl", sha256="0" * 64)
    asked.clear()
    for address, match in (
        ("hf://some/prompts@main/rows.jsonl", "all 40 digits"),
        (f"hf://some/prompts@{commit[:8]}/rows.jsonl", "all 40 digits"),
        ("hf://some/prompts/rows.jsonl", "hf://owner/name@commit/file"),
    ):
        with pytest.raises(InterpError, match=match):
            cases_from(address)
    assert asked == []
    monkeypatch.undo()
    with pytest.raises(InterpError, match="network and access rights"):
        dataset_cases("some/prompts", "rows.jsonl", revision=commit)


def test_a_model_that_refuses_nothing_is_refused(organism, tmp_path):
    plain = make_taboo(40, kinds=("plain",), tasks=("request", "qa"))
    cases = [
        Case(row=x.row, prompt=x.prompt, should=SIDES[i // 2 % 2], task=x.task, base=x.base)
        for i, x in enumerate(plain)
    ]
    with pytest.raises(InterpError, match=r"0 refused and \d+ answered"):
        study_refusal(organism, cases, settings=SETTINGS, directory=tmp_path)
    with pytest.raises(InterpError, match="chat template"):
        study_refusal(interp.load_model("countdown-tiny"), settings=SETTINGS, directory=tmp_path)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_neurons_are_left_out_where_they_are_no_summands(done, family_models, family):
    context = RefusalContext(model=family_models[family], cases=(), settings=SETTINGS)
    found = neurons(context)
    assert ("gate" if family == "gpt2" else "norm") in found["skipped"]
    study = replace(done[0], results=done[0].results | {"neurons": found})
    assert f"Left out: {escape(found['skipped'])}" in write_up(study).markdown()


def test_rates_of_nothing_are_said_not_raised(done):
    found = {name: dict(x) for name, x in done[0].results.items()}
    for name, x in found.items():
        if name.startswith("method_"):
            x |= {"retained": None, "selectivity": None}
    rows = claims(found)
    assert "retained –" in " ".join(row["evidence"] for row in rows)
    for x in found.values():
        x |= {"reduction": None} if "reduction" in x else {}
    assert len(claims(found)) == len(rows) - 1
    text = write_up(replace(done[0], results=found)).markdown()
    assert "![frontier]" not in text
    assert "## 6. Steering methods compared" in text
