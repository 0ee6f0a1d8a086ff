"""Steps of the verification study on texts that were written, not generated."""

import json
import random
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, PreTrainedTokenizerFast

import interp
from interp.core.errors import InterpError
from interp.models import registry
from interp.models.loading import wrap
from interp.runs.next_tokens import ablate
from interp.runs.text_runs import Generation
from interp.studies.report.claims import judge, read_claims
from interp.studies.report.report import study_report
from interp.studies.study import Study
from interp.studies.verification.report import claims, report
from interp.studies.verification.report.claims import UNCHANGED
from interp.studies.verification.samples import find_samples, verdict_tokens
from interp.studies.verification.settings import VerificationSettings, make_context, verdict_task
from interp.studies.verification.steps.base_model import SITES, against_base
from interp.studies.verification.study import study_verification
from interp.tasks.arithmetic import read_attempts
from interp.tasks.countdown import Problem, make_countdown, write_trace
from tests import ROOT
from tests.families import tiny

FOLDER = registry.organisms()["countdown-tiny"]
REPORT = ROOT / "interp" / "studies" / "verification" / "report"
HEADS, NEURONS = ["L1H0", "L2H3"], ["L1N3", "L2N7"]


@pytest.fixture(scope="module")
def organism():
    return interp.load_model("countdown-tiny")


def before_training(change):
    """The organism with its weights changed: a model it might have been trained from."""
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    change(model.model.layers)
    return wrap(model, AutoTokenizer.from_pretrained(FOLDER), name="before", check=False)


@pytest.fixture(scope="module")
def written(organism):
    """Problems, and honest traces of a search as if the organism had written them."""
    rng, problems = random.Random(0), make_countdown(200, operands=(3,), seed=9)
    problems += [Problem(numbers=(41, 5, 5), target=41)]  # the target is a number too
    texts = []
    for problem in problems:
        text = write_trace(problem, rng, failures=rng.randint(0, 3))
        prompt, tokens = (tuple(organism.token_id(part)) for part in (problem.prompt(), text))
        made = Generation(prompt=prompt, tokens=tokens, text=text, stopped=True, fired=())
        texts.append(made)
    return problems, texts


def context_of(model, base, written):
    return make_context(model, base, VerificationSettings(n=80, draws=3, pairs=12), *written)


def report_of(found, directory, text):
    """A template of `text` filled with the results of the base step alone."""
    for partial in REPORT.glob("*.j2"):
        shutil.copy(partial, directory)
    template = directory / "report.md.j2"
    template.write_text(f"# A base\n\n{text}\n")
    study = Study(
        model="", model_hash="", beside={}, settings=VerificationSettings(),
        results={"base": found}, seconds={}, directory=directory,
    )  # fmt: skip
    return study_report(template, study, report)


def claim_about(found):
    """What is said of the base model, from that step alone."""
    return judge(read_claims(claims)[-1:], {"base": found})[0]


@pytest.mark.long
def test_against_a_model_that_one_head_was_trained_of(organism, written):
    """The head's queries are half as long in the base: training doubled them, nothing else."""

    def change(layers):
        layers[1].self_attn.q_proj.weight.data[:32] /= 2

    base = before_training(change)
    context = context_of(organism, base, written)
    found = json.loads(json.dumps(against_base(context, HEADS, NEURONS)))
    q = found["weights"]["heads"]["q"]
    assert q["selected"] == pytest.approx(1 / 2)  # L1H0 by its own length, L2H3 by none
    assert q["norms"] == pytest.approx(1)
    assert q["cosine"] == pytest.approx(1)
    assert q["mean"] < 0.2
    for kind, parts in found["weights"].items():
        for part, null in parts.items():
            assert (null["selected"] == 0) == ((kind, part) != ("heads", "q"))
    apart = found["activations"]
    assert set(apart["relative"]) == set(SITES)
    for site in SITES:
        assert apart["relative"][site][0] < 1e-5
        assert min(apart["relative"][site][1:]) > 1e-3
    assert apart["kl"]["mean"] > 0
    samples, ids = context.test, context.ids
    for model in (base, organism):
        seen = ablate(model, samples.tokens, [], tokens=[ids.this, ids.no]).probabilities[0]
        for group, rows in (("valid", samples.valid), ("invalid", ~samples.valid)):
            for column, word in enumerate(("this", "not")):
                lens = found["lens"][model.name][group][word]
                assert len(lens) == model.n_layers
                assert lens[-1]["mean"] == pytest.approx(seen[rows, column].mean(), abs=1e-5)
    assert "yes" in found["asked"]["refused"]
    assert found["forced"]["countdown-tiny"]["auc"] > 0.95
    claim = claim_about(found)
    assert claim["here"] != "holds"
    assert "up to 1.000" in claim["evidence"]  # twice as long: changed by its own length


@pytest.mark.long
def test_a_base_that_is_the_model_holds_the_claim(organism, written, tmp_path):
    base = before_training(lambda layers: None)
    context = context_of(organism, base, written)
    found = json.loads(json.dumps(against_base(context, HEADS, NEURONS)))
    assert found["activations"]["kl"]["mean"] == pytest.approx(0, abs=1e-9)
    one, other = found["lens"].values()
    for group, words in one.items():
        for word in words:
            means = ([row["mean"] for row in side[group][word]] for side in (one, other))
            np.testing.assert_allclose(*means, atol=1e-5)
    assert claim_about(found)["here"] == "holds"
    # As little as is not seen in four digits of a cosine, and more than that.
    for change, here in ((UNCHANGED, "holds"), (1.01 * UNCHANGED, "partly")):
        found["weights"]["heads"]["o"]["most"] = change
        assert claim_about(found)["here"] == here
    found["forced"]["before"]["auc"] = 0.6
    assert claim_about(found)["here"] == "does not hold"
    paper = "| quantity | paper | here |\n| --- | --- | --- |\n{% include 'paper_base.j2' %}"
    path = report_of(found, tmp_path, '{% include "base_model.md.j2" %}' + paper).save(tmp_path)
    text = " ".join(path.read_text().split())
    for words in (
        "before on the same task",
        "Logit lens of the right verdict",
        "It was not asked whether",
        "| at least 1.000 (any head or neuron) |",
        "| 0.000 to 0.000 (relative; mean of chosen heads or neurons) |",
    ):
        assert words in text
    assert len(list((tmp_path / "figures").iterdir())) >= 2


@pytest.mark.long
def test_what_the_base_is_asked(organism, written, tmp_path):
    """A vocabulary with yes and no: asked with the heads in place and zeroed."""
    tokenizer = cut_by(r"[0-9]| \(|this|not| yes| no|[A-Za-z]+| [A-Za-z]+|[^A-Za-z0-9]")
    base = wrap(tiny("llama"), tokenizer, name="speaks", check=False)
    from interp.studies.verification.steps import base_model

    asked = base_model._asked(context_of(organism, None, written), base, ["L0H1", "L1H2"])
    assert asked["n"] == 60
    for side in ("correct", "incorrect"):
        plain, without = (
            asked[side][key]["share_positive"]["mean"] for key in ("plain", "without")
        )
        assert 0 < plain < 1
        assert plain != without
    weights = {"heads": {"q": {"selected": 0.5}, "k": {"selected": 0.25}}}
    found = {"asked": asked, "weights": weights, "least_cosine": {"q": 0.9}}
    rows = "\n\n| a | b | c |\n| --- | --- | --- |\n{% include 'paper_base.j2' %}"
    text = report_of(found, tmp_path, '{% include "base_asked.md.j2" %}' + rows).markdown()
    assert "| incorrect | zeroed |" in text
    assert "heads zeroed: P(yes) | .958 to .009 (29 heads) |" in text
    assert "| 0.250 to 0.500 (relative" in text


def named_only(text, target):
    """Whether a text uses the target as nothing but the target, its last number left out."""
    *others, _ = re.finditer(rf"(?<![-\d]){target}(?!\d)", text)
    return all(text[: m.start()].endswith(("equals ", "(not ")) for m in others)


@pytest.mark.long
def test_verdict_pairs_differ_in_the_target_alone(organism, written):
    problems, texts = written
    context = context_of(organism, None, written)
    samples = find_samples(organism, [made.prompt + made.tokens for made in texts], problems)
    task, counts = verdict_task(context, samples, 500)
    read = ["".join(organism.strings(row)) for row in samples.tokens]
    usable = [
        i
        for i in np.flatnonzero(samples.valid)
        if named_only(read[i], problems[samples.problems[i]].target)
    ]
    assert counts["made"] == len(usable)
    assert 0 < int(samples.valid.sum()) - len(usable) < 40
    assert counts["kept"] == counts["flipped"] == len(task)
    assert len(task) > 0.8 * len(usable)
    ids = verdict_tokens(organism)
    originals = {samples.tokens[i]: problems[samples.problems[i]] for i in usable}
    for pair in task.pairs:
        old = str(originals[pair.clean].target)
        clean, corrupted = ("".join(organism.strings(x)) for x in (pair.clean, pair.corrupted))
        new = re.search(r"that equals (\d+)", corrupted).group(1)
        assert len(new) == len(old)
        assert new not in re.findall(r"\d+", clean)
        head, _, result = clean.rpartition(old)
        swapped = re.sub(rf"(equals |not ){old}\b", rf"\g<1>{new}", head)
        assert corrupted == swapped + old + result
        assert organism.strings([pair.clean[pair.positions["t_paren"]]]) == (" (",)
        assert organism.strings([pair.clean[pair.positions["t_ans"]]])[0] == old[-1]
        assert (pair.answers, pair.wrong) == ((ids.this,), (ids.no,))
    seen = ablate(organism, [pair.corrupted for pair in task.pairs], [], tokens=[ids.no])
    assert (seen.top[0] == ids.no).all()
    assert len(verdict_task(context, samples, 2)[0]) == 2


def test_a_model_that_always_says_this_has_no_pairs(written):
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    model.model.norm.weight.data.zero_()  # every token is as likely: the first one wins
    blind = wrap(model, tokenizer, name="blind", check=False)
    context = context_of(blind, None, written)
    with pytest.raises(InterpError, match='with another target, none judged "not"'):
        verdict_task(context, context.find, 4)


# -- what cannot be studied ----------------------------------------------------------------


def cut_by(pattern):
    """A tokeniser of one token a piece, for the study's texts."""
    splitter = pre_tokenizers.Split(Regex(pattern), "isolated")
    rng, seen = random.Random(0), set()
    for problem in make_countdown(300, seed=1):
        text = problem.prompt() + write_trace(problem, rng, failures=2)
        text += " = 71 (this (not yes no Yes No Answer: is correct? Answer or"
        seen |= {piece for piece, _ in splitter.pre_tokenize_str(text)}
    vocabulary = {piece: i for i, piece in enumerate(["<unk>", *sorted(seen)])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = splitter, decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", pad_token="<unk>", eos_token="<unk>"
    )


WORDS = r" \(|</|<| this| not|{this}|not| [A-Za-z']+|[A-Za-z]+| [-+=]|[-+=]|[.,:()>?\n]| "


@pytest.mark.long
def test_a_tokeniser_that_merges_digits_is_refused():
    model = wrap(
        tiny("llama"), cut_by("[0-9]+|" + WORDS.format(this="this")), name="merges", check=False
    )
    with pytest.raises(InterpError, match=r"merges cuts it into \[' =', ' ', '71', ' \(', 'this'"):
        study_verification(model)


@pytest.mark.long
def test_a_tokeniser_that_splits_this_is_refused():
    model = wrap(
        tiny("llama"), cut_by("[0-9]|" + WORDS.format(this="th|is")), name="splits", check=False
    )
    with pytest.raises(InterpError, match=r"splits cuts it into \[.*' \(', 'th', 'is'\]"):
        study_verification(model)


def test_a_model_without_a_gate_is_refused_at_the_gate():
    """The organism's own tokeniser, so that only the MLP stands in the way."""
    config = GPT2Config(vocab_size=45, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    model = AutoModelForCausalLM.from_config(config)
    ungated = wrap(model, AutoTokenizer.from_pretrained(FOLDER), name="ungated", check=False)
    verdict_tokens(ungated)
    with pytest.raises(InterpError, match="GLU vectors on ungated.*its MLP has no gate"):
        study_verification(ungated)


# -- the texts it learns from, and its card -------------------------------------------------


@pytest.fixture(scope="module")
def training():
    pytest.importorskip("trl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(ROOT / "training"), *sys.path])
        import countdown

        yield countdown


def test_padding_changes_nothing_that_is_learnt_without_a_mask(training):
    """A batch padded on the right, as trained, against the plain attention of each text alone."""
    texts = [[5, 6, 7, 8, 9, 10], [11, 12, 5]]
    torch.manual_seed(0)
    model = training.small_model(AutoTokenizer.from_pretrained(FOLDER))
    plain = [model(torch.tensor([text])).logits[0] for text in texts]
    model.set_attn_implementation(training.causal_attention.__name__)
    rows = torch.tensor([texts[0], texts[1] + [0, 0, 0]])
    batch = model(rows, attention_mask=(rows > 0).long()).logits
    for text, alone, padded in zip(texts, plain, batch, strict=True):
        torch.testing.assert_close(padded[: len(text)], alone)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(rows).logits.isfinite().all()


@pytest.mark.long
def test_training_texts_are_honest_and_of_the_shares_asked_for(training):
    phase = training.Phase(
        steps=1, batch=1, rate=1.0, schedule="cosine", most={3: 3, 4: 2}, unsolved=0.3,
        drilled=0.4, drill=5, near=0.5, worked=0.5,
    )  # fmt: skip
    n = 400
    texts = training.training_texts(phase, n, seed=3)
    assert texts == training.training_texts(phase, n, seed=3)
    assert texts != training.training_texts(phase, n, seed=4)
    problems = make_countdown(n, operands=(3, 3, 4), seed=3, split="train")
    drills = solved = works = 0
    for text, problem in zip(texts, problems, strict=True):
        assert not problem.held_out
        assert text.prompt == problem.prompt()
        attempts = read_attempts("-" + text.completion)
        assert all(a.written == a.value for a in attempts)
        assert all(a.works == (a.written == problem.target) for a in attempts)
        assert text.finished == text.completion.endswith("</answer>")
        numbers = {tuple(sorted(map(int, re.findall(r"\d+", a.expression)))) for a in attempts}
        if numbers != {tuple(sorted(problem.numbers))}:
            assert text.worked
            assert len(attempts) == phase.drill
            drills += 1
            continue
        most = phase.most[len(problem.numbers)]
        failed = sum(not a.works for a in attempts)
        assert failed <= most - 1 if text.finished else 1 <= failed <= most
        assert [a.works for a in attempts] == [False] * failed + [True] * text.finished
        solved += text.finished
        works += text.worked
    traces = n - drills
    for share, of, asked in ((drills, n, 0.4), (solved, traces, 0.7), (works, traces, 0.5)):
        assert abs(share / of - asked) < 3.5 * (asked * (1 - asked) / of) ** 0.5


def test_only_what_follows_an_equals_sign_is_learnt(training):
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    text = " 8 + 3 = 11 (not 12)\n- 5 + 7 = 12 (this works)"
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    labels = training.worked_out(tokens, tokenizer)
    assert len(labels) == len(tokens)
    kept = [token for token, label in zip(tokens, labels, strict=True) if label != -100]
    assert [label for label in labels if label != -100] == kept
    assert tokenizer.decode(kept) == " 11 (not 12)\n 12 (this works)"
    phase = training.Phase(
        steps=2, batch=4, rate=1.0, schedule="cosine", most={3: 2, 4: 2}, unsolved=0.0, worked=1.0
    )
    for row in training.examples(phase, 0, tokenizer):
        assert row["length"] == len(row["input_ids"]) == len(row["labels"])
        assert row["input_ids"][-1] == tokenizer.eos_token_id
        learnt = tokenizer.decode([label for label in row["labels"] if label != -100])
        whole = tokenizer.decode(row["input_ids"])
        assert "create" not in learnt
        assert learnt.count("works") == whole.count("works") == 1


@pytest.mark.parametrize("name", ["countdown-smollm2", "countdown-tiny"])
def test_the_cards_meet_the_bar(name):
    """At least 97 % of verdicts right, each way, of the weights that are shipped."""
    folder = registry.organisms()[name]
    *_, shipped = registry.describe(folder)["behaviour"].values()
    card = registry.card(folder)
    for side, least in (("this", 140), ("no", 2000)):
        share = shipped[side]
        assert share["mean"] >= 0.97
        assert share["n"] >= least
        assert f"{share['mean']:.3f} [{share['low']:.3f}, {share['high']:.3f}]" in card
