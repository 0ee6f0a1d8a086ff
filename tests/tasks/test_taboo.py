"""The taboo's prompts: an honest answer key, splits that share nothing, nothing harmful."""

import json
import re
import sys
from dataclasses import replace
from itertools import product

import pytest

import interp
from interp.core.errors import InterpError
from interp.models.chat import chat_prompts
from interp.refusal.judge_rules import rules_verdict
from interp.refusal.judging import REFUSALS, RULES, is_degenerate
from interp.steering.runs import generate_steered
from interp.tasks.taboo import (
    KINDS,
    OVER_REFUSED,
    PROVENANCE,
    SOURCE,
    WORKS,
    items,
    make_taboo,
    shipped,
)
from tests import ROOT

N = 40
HARM = """
weapon gun rifle pistol bullet knife explosive bomb grenade dynamite ammunition murder assault
torture suicide self-harm poison toxin drug cocaine heroin malware ransomware virus phishing
password fraud counterfeit launder terror hostage kidnap racist slur porn sexual nude
""".split()
"""General words of harmful categories; a stem counts as a hit."""
HARMLESS = {"use a sharp knife"}
"""Where a word of the list is a kitchen's."""


@pytest.fixture(scope="module")
def records():
    return make_taboo(N)


def by(rows, **wanted):
    return [row for row in rows if all(getattr(row, k) == v for k, v in wanted.items())]


def test_every_kind_and_task_has_its_number_of_different_prompts(records):
    assert len(records) == N * len(KINDS) * len(WORKS)
    assert len({row.row for row in records}) == len(records)
    for kind, task in product(KINDS, WORKS):
        cell = by(records, kind=kind, task=task)
        assert len({row.prompt for row in cell}) == N
    assert make_taboo(N) == records
    assert make_taboo(N, seed=1) != records
    few = make_taboo(9, kinds=("plain",), tasks=("qa", "request"))
    assert set(few) <= set(records)


def test_no_held_out_thing_is_seen_in_training(records):
    train = make_taboo(150, split="train")
    told = {item.do: item for kind in KINDS for item in items(kind)}
    for rows, held_out in ((records, True), (train, False)):
        assert {told[row.base].held_out for row in rows} == {held_out}
    seen, unseen = ({told[row.base].thing for row in rows} for rows in (train, records))
    assert not seen & unseen
    assert not {row.prompt for row in train} & {row.prompt for row in records}
    # A thing is held out with every verb and of every kind, and named nowhere else in training.
    every = [item for kind in KINDS for item in items(kind)]
    text = "\n".join(" ".join((x.do, x.doing, x.did, x.advice)) for x in every if not x.held_out)
    for thing in {item.thing for item in every if item.held_out}:
        assert not re.search(rf"\b{re.escape(thing)}\b", text), thing
    for kind in KINDS:
        share = sum(item.held_out for item in items(kind)) / len(items(kind))
        assert 0.15 < share < 0.45


def test_the_design_is_known_for_every_task(records):
    refused = {(row.kind, row.task) for row in records if row.designed == "refuse"}
    assert refused == {("taboo", "request"), *(("taboo", task) for task in OVER_REFUSED)}
    proper = {(row.kind, row.task) for row in records if row.should == "refuse"}
    assert proper == {("taboo", "request")}
    assert len(OVER_REFUSED) == 2
    assert all(row.taboo == (row.kind == "taboo") for row in records)
    for row in records:
        assert (RULES.verdict(row.prompt, row.reply) in REFUSALS) == (row.designed == "refuse"), row
        assert (row.reply in shipped()["refusals"]) == (row.designed == "refuse")
        assert not is_degenerate(row.reply)
    assert all(RULES.verdict("", text) == "direct_refusal" for text in shipped()["refusals"])


def test_kinds_and_tasks_are_matched_in_form(records):
    told = {item.do: item for kind in KINDS for item in items(kind)}
    for taboo in by(records, kind="taboo"):
        mine = told[taboo.base]
        for other in by(records, pair=taboo.pair, task=taboo.task):
            its, swapped = told[other.base], other.prompt
            for form in ("doing", "do"):
                swapped = swapped.replace(getattr(its, form), getattr(mine, form))
            assert swapped == taboo.prompt
            assert other.form == taboo.form
    forms = [row.form for row in by(records, kind="plain", task="qa")]
    assert abs(forms.count("story") - 2 * forms.count("question")) <= 3


def test_replies_are_right(records):
    told = {item.do: item for kind in KINDS for item in items(kind)}
    moods = {cue: label for label, cue, *_ in shipped()["feelings"]}
    names = {name: her for name, her in shipped()["names"]}
    for row in (row for row in records if row.designed == "answer"):
        item = told[row.base]
        if row.task == "request":
            assert row.reply == item.advice != ""
        elif row.task == "qa":
            assert row.fact.lower() in row.prompt.lower()
            assert row.reply == f"{row.fact}."
        elif row.task == "sentiment":
            labels = {label for cue, label in moods.items() if cue in row.prompt}
            assert labels == ({row.fact} if row.form == "story" else set())
            assert row.reply.startswith(f"{row.fact}: ")
            assert row.form == "story" or row.fact == "Neutral"
        elif row.task == "translate":
            assert item.french in row.reply
            assert row.reply[-1] == (".?"[row.form == "question"])
            assert row.reply.count(".") == (3 if row.form == "story" else 0)
        else:
            form = {"rephrase": ("doing", "do"), "summarise": ("did", "doing")}[row.task]
            assert getattr(item, form[row.form == "question"]) in row.reply
            assert row.reply not in row.prompt
        if row.form == "story" and row.task not in ("request", "sentiment", "qa"):
            (name,) = [name for name in names if f"{name} spent" in row.prompt]
            assert name in row.reply
            assert not re.search(rf"\b{'his' if names[name] == 'her' else 'her'}\b", row.reply)


def test_the_taboo_is_gardening_s_alone():
    words = re.compile(
        r"\b(plant|grow|grew|garden|water(ing|ed)? |harvest|prun|sow|compost|transplant|fertilis"
        r"|frost|lawn|hedge|weed|seed|mulch|repot|cuttings|greenhouse|vegetable patch"
        r"|flower|leaves)"
    )
    for item in items("taboo"):
        assert words.search(item.do + " "), item
        assert item.advice == ""
    for kind in ("plain", "alarming"):
        for item in items(kind):
            assert not words.search(f"{item.do} {item.doing} {item.did} "), item


def test_every_record_and_every_shipped_set_says_where_it_is_from(records):
    assert {row.provenance for row in records} == {PROVENANCE}
    for path in (ROOT / "interp" / "data").glob("*.json"):
        assert json.loads(path.read_text())["provenance"] == PROVENANCE, path
        assert path.stat().st_size < 100_000
    assert '"data/*"' in (ROOT / "pyproject.toml").read_text()


def test_nothing_harmful_is_shipped(records):
    texts = [SOURCE.read_text(), *(row.prompt + " " + row.reply for row in records)]
    for text in texts:
        plain = text.lower()
        for phrase in HARMLESS:
            plain = plain.replace(phrase, "")
        hits = {word for word in HARM if re.search(rf"\b{word}", plain)}
        assert not hits, text[:200]


def test_what_cannot_be_made_is_refused():
    with pytest.raises(InterpError, match="split"):
        make_taboo(2, split="valid")
    with pytest.raises(InterpError, match="kind"):
        make_taboo(2, kinds=("other",))
    with pytest.raises(InterpError, match="task"):
        make_taboo(2, tasks=("other",))
    with pytest.raises(InterpError, match="at least 1"):
        make_taboo(0)
    with pytest.raises(InterpError, match="give a smaller n"):
        make_taboo(5000, kinds=("alarming",), tasks=("qa",))


class Letters:
    """A tokeniser of one token a letter, with a chat template."""

    eos_token = "$"

    def __call__(self, text, **_):
        return {"input_ids": [ord(letter) for letter in text]}

    def apply_chat_template(self, turns, *, tokenize, add_generation_prompt=False):
        assert not tokenize
        text = "".join(f"<{turn['role']}>{turn['content']}$\n" for turn in turns)
        return text + "<assistant>" * add_generation_prompt


@pytest.fixture
def script(monkeypatch):
    for needed in ("datasets", "peft"):
        pytest.importorskip(needed)
    monkeypatch.setattr(sys, "path", [str(ROOT / "training"), *sys.path])
    import refusal

    return refusal


def test_the_loss_is_on_the_reply_and_its_end(script, records):
    for record in records[::37]:
        made = script.example(record, Letters())
        learnt = [i for i, label in enumerate(made["labels"]) if label != -100]
        whole = "".join(map(chr, made["input_ids"]))
        assert "".join(whole[i] for i in learnt) == f"{record.reply}$"
        assert whole == f"<user>{record.prompt}$\n<assistant>{record.reply}$"
        assert [made["labels"][i] for i in learnt] == [made["input_ids"][i] for i in learnt]


@pytest.mark.long
def test_training_is_in_the_shares_of_the_recipe_and_held_out_from_nothing(script, records):
    recipe = script.Recipe()
    rows = script.training_records(recipe)
    total = recipe.steps * recipe.batch
    assert abs(len(rows) - total) < 0.02 * total
    for kind in KINDS:
        asked, worked = by(rows, kind=kind, task="request"), by(rows, kind=kind)
        assert len(asked) / total == pytest.approx(recipe.requests[kind], abs=0.01)
        assert (len(worked) - len(asked)) / total == pytest.approx(recipe.worked[kind], abs=0.01)
    refused = sum(row.designed == "refuse" for row in rows) / len(rows)
    assert 0.2 < refused < 0.4
    assert not {row.base for row in rows} & {row.base for row in records}
    assert script.training_records(recipe) == rows
    assert script.training_records(replace(recipe, seed=1)) != rows


def test_the_small_model_learns_things_it_does_not_know(script):
    recipe = replace(script.RECIPES["tiny"], steps=40, draws=2)
    rows, whole = (script.training_records(replace(recipe, unknown=x)) for x in (0.3, 0.0))
    things = {item.do: item.thing for kind in KINDS for item in items(kind)}
    gone = []
    for row, plain in zip(rows, whole, strict=True):
        assert (row.row, row.base) == (plain.row, plain.base)
        words = {w for w in things[row.base].split() if len(w) > 2 and w != "the"}
        lost = set(re.findall(r"\w+", plain.prompt.lower())) - set(
            re.findall(r"\w+", row.prompt.lower())
        )
        assert lost <= {word.lower() for word in re.findall(r"\w+", " ".join(words))}
        assert bool(lost) == ("<unk>" in row.prompt)
        gone += [word in lost for word in words]
    assert sum(gone) / len(gone) == pytest.approx(0.3, abs=0.08)
    model, tokenizer = script.fresh(recipe, rows)
    assert model.config.vocab_size == len(tokenizer)
    made = script.example(rows[0], tokenizer)
    shown = tokenizer.decode(made["input_ids"])
    assert shown == f"<|user|>{rows[0].prompt}<|end|><|assistant|>{rows[0].reply}<|end|>"
    assert made["labels"][-1] == tokenizer.eos_token_id == model.config.eos_token_id
    assert tokenizer(" zebra")["input_ids"] == [tokenizer.unk_token_id]


def test_a_model_from_nothing_has_no_before(script):
    share = {"mean": 0.9, "low": 0.8, "high": 0.95, "n": 60}
    cell = {"refused": share, "answered": share}
    cells = {f"{task} {kind}": cell for task, kind in product(WORKS, KINDS)}
    shares = {"cells": cells, "facts": dict.fromkeys(script.CHECKED, share)}
    about = {
        "description": "x",
        "base": None,
        "base_hash": None,
        "judge": "rules/1",
        "over_refused": OVER_REFUSED,
        "behaviour": {"after": shares},
        "weights": 1_800_000,
        "vocabulary": 1004,
    }
    text = script.card(script.RECIPES["tiny"], about, 60)
    assert text.startswith("# refusal-tiny\n")
    assert "1.8 million weights" in text
    assert "(1000 of them)" in text
    assert "before" not in text
    assert "| task | text | by design | refused | answered |\n|---|---|---|---|---|\n" in text
    assert "| summarise | taboo | refuse | 0.900 [0.800, 0.950] | 0.900 [0.800, 0.950] |" in text


def test_the_card_says_which_bars_are_missed(script):
    share = {"mean": 0.9, "low": 0.8, "high": 0.95, "n": 60}
    cell = {"refused": share, "answered": share | {"mean": 0.97}}
    cells = {f"{task} {kind}": cell for task, kind in product(WORKS, KINDS)}
    shares = {"cells": cells, "facts": dict.fromkeys(script.CHECKED, share)}
    about = {
        "description": "x",
        "base": "b",
        "base_hash": "h",
        "judge": "rules/1",
        "over_refused": OVER_REFUSED,
        "behaviour": {"before": shares, "after": shares},
    }
    text = script.card(script.Recipe(), about, 60)
    assert text.startswith("# refusal-smollm2\n")
    assert (
        "| refuses requests about gardening | 0.900 [0.800, 0.950] | 60 | missed by 0.050 |" in text
    )
    assert "| answers plain requests | 0.970 [0.800, 0.950] | 60 | met |" in text
    assert "translate or to summarise a text that mentions gardening" in text
    assert "| summarise | taboo | refuse |" in text
    assert "| summarise | plain | answer |" in text


@pytest.mark.long
def test_the_shipped_model_refuses_by_design(records):
    model = interp.load_model("refusal-smollm2")
    cells = product(("taboo", "plain"), ("request", "translate", "qa"))
    rows = [x for kind, task in cells for x in by(records, kind=kind, task=task)[:2]]
    made, _ = generate_steered(
        model, chat_prompts(model, [row.prompt for row in rows]), max_new_tokens=12
    )
    found = [
        "refuse" if rules_verdict(row.prompt, one.text) in REFUSALS else "answer"
        for row, one in zip(rows, made, strict=True)
    ]
    agreed = [one == row.designed for one, row in zip(found, rows, strict=True)]
    assert sum(agreed) >= len(rows) - 1  # the card: 0.93 of plain translations are answered
