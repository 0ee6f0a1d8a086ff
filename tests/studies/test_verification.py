"""Steps of the verification study against slow references, on the small organism."""

import re
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import interp
from interp.core.errors import InterpError
from interp.core.nulls import null_of, turned_directions
from interp.patching.path import path_patching
from interp.results.direction import load_directions, save_directions
from interp.runs.change import Where
from interp.runs.generation import generate
from interp.runs.hooks import intervene
from interp.runs.kinds import add, make_ablation, random_like
from interp.runs.stored_runs import site_values
from interp.runs.text_runs import Generation
from interp.steering.at_trigger import vector_steering
from interp.studies.verification.report.report import corrected
from interp.studies.verification.settings import VerificationSettings, make_context, verdict_task
from interp.studies.verification.steps import (
    chain,
    compared,
    controls,
    finding_heads,
    interchange,
    readouts,
    steering,
)
from interp.studies.verification.steps.behaviour import behaviour, countdown_texts
from interp.studies.verification.steps.texts import intervention_table, published_protocol
from interp.studies.verification.steps.verdicts import _effect, sufficiency, verdict_effects
from interp.studies.verification.study import study_verification
from interp.tasks.countdown import Problem, make_countdown

SETS = {
    "GLU_Valid": ["L2N3", "L3N10", "L3N40"],
    "A_Prev": ["L1H0", "L2H3", "L3H1"],
    "A_Verif": ["L1H0", "L1H1"],
}


SIDES = ("valid into invalid", "invalid into valid")


@pytest.fixture(scope="module")
def context():
    model, problems = interp.load_model("countdown-tiny"), make_countdown(224, seed=5)
    settings = VerificationSettings(n=40, draws=5, pairs=6, top_k=(4,))
    return make_context(model, None, settings, problems, countdown_texts(model, problems))


def hooked(model, texts, labels=(), where: Where = "all", ablation=None):
    """The next token's log-probabilities, the set zeroed by plain interventions."""
    lengths = [len(text) for text in texts]
    ablation = ablation or (make_ablation(model, labels) if labels else None)
    made = [ablation.last(where)] if ablation else []
    found = []
    with intervene(model, made), torch.no_grad():
        for batch, logits in model.run(texts):
            for row, prompt in enumerate(batch.prompts.tolist()):
                at = batch.column(row, lengths[prompt] - 1)
                found.append((prompt, logits[row, at].double().log_softmax(-1)))
    return torch.stack([logs for _, logs in sorted(found, key=lambda pair: pair[0])])


INVENTED = """ 350 + 120 - 105 = 470 - 105 = 365 (not 335)
- 350 - 120 + 105 = 230 + 105 = 335 (this works)
So, the equation that equals 335 is 350 - 120 + 105. </think>
<answer> 350 - 120 + 105 </answer>

Using the numbers 1, 2, create an equation that equals 335.
<think> Let's try different combinations:
- 1 + 2 = 335 (this works)
- 2 - 1 = 335 (this works)
So, the equation that equals 335 is 1 + 2. </think>
<answer> 1 + 2 </answer>"""


def test_what_is_invented_behind_the_answer_does_not_count():
    problem = Problem(numbers=(350, 120, 105), target=335)
    made = Generation(prompt=(), tokens=(), text=INVENTED, stopped=False, fired=())
    whole = behaviour([problem], [made], template="in-context")
    cut = INVENTED.partition("\n\n")[0]
    alone = behaviour([problem], [replace(made, text=cut, stopped=True)], template="in-context")
    assert whole == replace(alone, format=whole.format)
    assert (whole.solved.mean, whole.honest.mean, whole.honest.n) == (1, 1, 1)
    assert (whole.attempts, alone.format.mean) == (2, 1)


@pytest.mark.long
def test_texts_end_at_their_answer():
    """They are those of a run without that stop, cut there; in no share does it show."""
    model, problems = interp.load_model("countdown-tiny"), make_countdown(8, operands=[3], seed=5)
    texts = countdown_texts(model, problems, max_new_tokens=160)
    prompts = [problem.prompt() for problem in problems]
    plain = generate(model, prompts, max_new_tokens=160)
    ended = [text for text in texts if "</answer>" in text.text]
    assert ended
    assert all(text.stopped and text.text.endswith("</answer>") for text in ended)
    for text, whole in zip(texts, plain, strict=True):
        assert text.text == "".join(whole.text.partition("</answer>")[:2])
    assert behaviour(problems, texts) == behaviour(problems, plain)


@pytest.mark.parametrize(
    "written",
    [
        "no verdict at all",
        " 1 + 1 = 2 (not {target})\n- 1 + 2 = 3 (not {target})\n",
        " 1 + 1 = {target} (not {target})\n- 1 + 2 = 3 (this works)\n",
    ],
)
@pytest.mark.long
def test_a_first_block_without_a_valid_sample_ends_the_study(monkeypatch, tmp_path, written):
    """With what the model did instead, and after the first block alone."""
    model, asked = interp.load_model("countdown-tiny"), []

    def texts(model, problems, *, template, **options):
        asked.append(len(problems))
        made = []
        for problem in problems:
            text = written.format(target=problem.target)
            prompt, tokens = (model.tokenize(x).tokens for x in (problem.prompt(template), text))
            made.append(Generation(prompt=prompt, tokens=tokens, text=text, stopped=True, fired=()))
        return made

    monkeypatch.setattr("interp.studies.verification.study.countdown_texts", texts)
    settings = VerificationSettings(n=40, template="in-context")
    with pytest.raises(InterpError, match="0 texts with a usable valid sample") as error:
        study_verification(model, settings=settings, directory=tmp_path)
    assert asked == [10]
    assert all(text in str(error.value) for text in ("solve rate: 0.000", "format validity: 0.000"))


def test_effects_are_those_of_hooked_runs(context):
    ids, samples = context.ids, context.test
    found = verdict_effects(context, samples, SETS, null_pairs=4)
    valid = samples.valid
    part = [*np.flatnonzero(valid)[:4], *np.flatnonzero(~valid)[:4]]
    plain = hooked(context.model, samples.tokens)
    for name, labels in SETS.items():
        row = found["sets"][name]
        changed = hooked(context.model, samples.tokens, labels, 2)
        no = (changed.argmax(-1) == ids.no).numpy()
        assert row["disabled"]["mean"] == no[valid].mean()
        assert row["invalid_kept"]["mean"] == no[~valid].mean()
        gap = [(x[:, ids.this] - x[:, ids.no]).numpy() for x in (plain, changed)]
        for side, rows in (("shift", valid), ("shift_invalid", ~valid)):
            moved = (gap[1] - gap[0])[rows].mean()
            assert row[side]["mean"] == pytest.approx(moved, abs=1e-3)
        assert row["auc"]["mean"] == pytest.approx(roc_auc_score(valid, gap[1]))
        assert len(row["null"]["disabled"]) == row["draws"] == 5
        assert row["null_n"] == 8
        if name != "A_Verif":
            continue
        few = [samples.tokens[i] for i in part]
        drawn = random_like(context.model, labels, 5, seed=0)
        logs = [hooked(context.model, few, other, 2) for other in drawn]
        shares = [(x.argmax(-1) == ids.no)[:4].double().mean().item() for x in logs]
        assert row["null"]["disabled"] == pytest.approx(shares)
        gaps = [(x[:, ids.this] - x[:, ids.no]).numpy() for x in logs]
        aucs = [roc_auc_score(valid[part], x) for x in gaps]
        assert row["null"]["auc"] == pytest.approx(aucs)
        assert row["own"]["auc"] == pytest.approx([roc_auc_score(valid[part], gap[1][part])] * 5)
        assert row["own"]["disabled"] == pytest.approx([no[part[:4]].mean()] * 5)
        as_low = sum(auc <= roc_auc_score(valid[part], gap[1][part]) for auc in aucs)
        assert row["auc_share"] == pytest.approx((1 + as_low) / 6)
        beaten = sum(share >= no[part[:4]].mean() for share in shares)
        assert row["share"] == pytest.approx((1 + beaten) / 6)


def test_at_the_published_tokens_heads_go_everywhere_and_neurons_at_the_last(context):
    ids, samples = context.ids, context.test.balanced(4)
    found = controls.effects_published(context, samples, SETS)
    valid = samples.valid
    for name, labels in SETS.items():
        row, where = found["sets"][name], "all" if name.startswith("A_") else 1
        assert row["where"] == ("all" if where == "all" else "last")
        no = (hooked(context.model, samples.tokens, labels, where).argmax(-1) == ids.no).numpy()
        assert row["disabled"]["mean"] == no[valid].mean()
        assert row["invalid_kept"]["mean"] == no[~valid].mean()
        assert {len(values) for values in row["null"].values()} == {row["draws"]} == {5}
    # Random set i is run on the pair of valid sample i and its invalid match.
    row = found["sets"]["A_Prev"]
    for i, labels in enumerate(random_like(context.model, SETS["A_Prev"], 5, seed=0)):
        pair = [samples.tokens[i % 4], samples.tokens[4 + i % 4]]
        no = hooked(context.model, pair, labels).argmax(-1) == ids.no
        assert row["null"]["disabled"][i] == float(no[0])
        assert row["null"]["invalid_kept"][i] == float(no[1])


def test_draws_are_dealt_out_and_judged_on_their_own_samples(context):
    asked = []

    def measure(some, tried):
        asked.append(list(some))
        mine = np.array([[0.0, 1.0, 0.0, 1.0][i] for i in some])
        return np.stack([np.stack([mine, 2 * mine], -1) for _ in tried])

    dealt = controls.deal(context, {"A": ["L1H0", "L2H3"]}, [[0, 1], [2, 3]], measure)["A"]
    assert asked == [[0, 1, 2, 3], [0, 1], [2, 3]]
    run = [np.flatnonzero(~np.isnan(draw[:, 0])).tolist() for draw in dealt.random]
    assert run == [[0, 1], [2, 3]] * 2 + [[0, 1]]
    assert dealt.means(0).tolist() == [0.5] * 5
    assert dealt.means(1, np.array([False, True, False, True])).tolist() == [2.0] * 5
    low = controls.Dealt(values=dealt.values + 1, random=dealt.random)
    assert low.beside(0).mean() == pytest.approx(1)
    assert dealt.beside(1).mean() == 0


@pytest.mark.long
def test_steered_verdicts_are_those_of_hooked_runs(context):
    found, samples = steering.steering(context), context.test
    layers, ids = range(2, 4), context.ids
    assert found["layers"] == [2, 3]
    at = context.states["resid_post"][2:, :, 1]
    assert found["length"] == pytest.approx(at.norm(dim=-1).mean().item())
    assert len(found["rows"]) == 3 * len(steering.SCALES)
    for row in found["rows"]:
        vectors = context.directions[row["direction"]]
        for sign, word, before in ((1, ids.this, ids.no), (-1, ids.no, ids.this)):
            texts = [
                tokens
                for tokens, valid in zip(samples.tokens, samples.valid, strict=True)
                if valid == (before == ids.this)
            ]
            size = sign * row["scale"] * found["length"]
            made = vector_steering(context.model, vectors, scale=size, layers=layers)
            top = hooked(context.model, texts, where=1, ablation=made).argmax(-1)
            mine = row["this" if word == ids.this else "not"]
            assert mine["mean"] == (top == word).double().mean()
            assert mine["neither"] == ((top != word) & (top != before)).double().mean()
            assert len(mine["null"]) == 5
    strongest = max(found["rows"], key=lambda row: row["this"]["mean"])
    assert strongest["this"]["mean"] > np.mean(strongest["this"]["null"])
    assert found["text"]["plain"].startswith(" (not")


@pytest.mark.long
def test_one_layer_is_steered_at_a_time_beside_rivals(context):
    found, ids = steering.steering_by_layer(context), context.ids
    lengths = context.states["resid_post"][:, :, 1].double().norm(dim=-1).mean(-1)
    assert found["lengths"] == pytest.approx(lengths.tolist())
    rows = found["directions"]
    assert {steering.ANSWER, "odd - even result", "shuffled verdicts 0"} < set(rows)
    weight = context.model.require_decoder("a test")
    answer = weight.unembed[ids.this] - weight.unembed[ids.no]
    answer = (answer * weight.ln_final.weight).double()
    mean = context.directions["mean difference"]
    cosine = torch.nn.functional.cosine_similarity(mean, answer[None], dim=-1)
    assert rows["mean difference"]["cosine"] == pytest.approx(cosine.tolist(), abs=1e-5)
    assert rows[steering.ANSWER]["cosine"] == pytest.approx([1] * 4)
    invalid = np.flatnonzero(~context.test.valid)[: found["n"]]
    texts = [context.test.tokens[i] for i in invalid]
    for name, vectors in (("mean difference", mean), (steering.ANSWER, answer)):
        for layer, dose in ((1, 0), (3, 2)):
            size = steering.DOSES[dose] * found["lengths"][layer]
            made = vector_steering(context.model, vectors, scale=size, layers=[layer])
            top = hooked(context.model, texts, where=1, ablation=made).argmax(-1)
            turned = (top == ids.this).double().mean().item()
            assert rows[name]["this"][layer][dose] == pytest.approx(turned)
    # The answer's words turn verdicts in the last layer too: there the null is the one that hurts.
    assert rows[steering.ANSWER]["this"][3][2] > 0.5


@pytest.mark.long
def test_the_kept_direction_turns_the_samples_it_was_chosen_on(context, tmp_path):
    found = steering.steering_by_layer(context)
    kept = steering.chosen_direction(context, found)
    path = save_directions(tmp_path / "directions", kept)
    (one,) = load_directions(path).values()
    turned = {word: np.array(x)[:, found["dose"]] for word, x in found["find"].items()}
    assert sum(x[one.layer] for x in turned.values()) == max(sum(turned.values()))
    size = steering.DOSES[found["dose"]] * found["lengths"][one.layer] / one.norm
    for word, sign in steering.SIGNS.items():
        wanted, before = (context.ids.this, False) if sign > 0 else (context.ids.no, True)
        some = np.flatnonzero(context.find.valid == before)[: found["n"]]
        texts = [context.find.tokens[i] for i in some]
        made = add(one, coefficient=sign * size, positions="last")
        with intervene(context.model, made):
            top = context.model.last_logits(texts).argmax(-1)
        share = (top == wanted).double().mean().item()
        assert share == pytest.approx(turned[word][one.layer], abs=0.02)


@pytest.mark.long
def test_every_small_set_is_tried_on_the_find_samples(context):
    heads = ["L1H0", "L2H0", "L2H2", "L3H1"]

    def share(samples, labels):
        texts = [t for t, valid in zip(samples.tokens, samples.valid, strict=True) if valid]
        top = hooked(context.model, texts, list(labels), 2).argmax(-1)
        return (top == context.ids.no).double().mean().item()

    assert all(share(context.find, [head]) < 0.95 for head in heads)
    pairs = {x for x in combinations(heads, 2) if share(context.find, x) >= 0.95}
    assert ("L2H0", "L2H2") in pairs
    found = finding_heads.smallest(context, heads)
    assert (found["candidates"], found["most"], found["tried"]) == (4, 2, 10)
    assert {tuple(row["heads"]) for row in found["sets"]} == pairs
    assert found["found"] == len(pairs)
    for row in found["sets"] + found["alone"]:
        assert row["zero"]["mean"] == share(context.test, row["heads"])
        assert set(row) == {"heads", "zero", "mean", "resample"}
    every = [f"L{layer}H{head}" for layer in range(4) for head in range(6)]
    alone = [head for head in every if share(context.find, [head]) >= 0.95]
    assert [row["heads"] for row in found["alone"]] == [[head] for head in alone]
    assert found["heads"] == len(every)
    assert finding_heads.smallest(context, ["L1H0", "L3H1"])["sets"] == []


@pytest.mark.long
def test_side_effects_are_those_of_hooked_runs(context):
    samples = context.test.balanced(4)
    found = controls.side_effects(context, samples, SETS)
    texts = [tokens[:-2] for tokens in samples.tokens]
    digits = torch.tensor([tokens[-2] for tokens in samples.tokens])
    for name, labels in SETS.items():
        right = hooked(context.model, texts, labels).argmax(-1) == digits
        assert found[name]["arithmetic"]["mean"] == right.double().mean()
        drawn = random_like(context.model, labels, 5, seed=0)
        for i, other in enumerate(drawn):
            here = slice(2 * (i % 4), 2 * (i % 4) + 2)
            right = hooked(context.model, texts[here], other).argmax(-1) == digits[here]
            assert found[name]["arithmetic_null"][i] == right.double().mean()
        assert found[name]["arithmetic_beside"]["n"] == 5


@pytest.mark.long
def test_losses_on_plain_text_are_the_mean_of_log_probabilities(smollm):
    texts = ("The library opens at nine in the morning.", "Bread is made from flour.")
    for labels in ((), ("L3H2", "L20N7")):
        found = controls.plain_text_losses(smollm, labels, texts)
        for text, loss in zip(texts, found, strict=True):
            tokens = smollm.token_id(text)
            each = [
                -hooked(smollm, [tokens[:i]], list(labels))[0, tokens[i]].item()
                for i in range(1, len(tokens))
            ]
            assert loss == pytest.approx(np.mean(each), abs=1e-4)
    assert found != controls.plain_text_losses(smollm, (), texts)


def test_a_set_is_patched_from_run_to_run(context):
    ids = context.ids
    found = sufficiency(context, SETS)
    task, _ = verdict_task(context, context.test, 6)
    clean, corrupted = ([getattr(p, x) for p in task.pairs] for x in ("clean", "corrupted"))
    logs = [hooked(context.model, texts) for texts in (clean, corrupted)]
    gaps = [(x[:, ids.this] - x[:, ids.no]).numpy() for x in logs]
    assert found["gap"] == pytest.approx((gaps[0] - gaps[1]).mean(), abs=1e-3)
    # All heads at the last tokens are all that these tokens know of the others.
    heads = [f"L{layer}H{head}" for layer in range(4) for head in range(6)]
    carried = sufficiency(context, {"all": heads})
    for side in SIDES:
        row = carried[side]["all"]
        assert row["effect"] == pytest.approx(1, abs=1e-3)
        assert row["flipped"]["mean"] == 1
    for side in SIDES:
        assert found[side].keys() == SETS.keys()
        for row in found[side].values():
            assert row["effect_low"] <= row["effect"] <= row["effect_high"]
            assert len(row["effect_null"]) == len(row["flipped_null"]) == 5


def test_an_effect_s_interval_covers_the_truth():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(100):
        whole = rng.normal(10, 2, 40)
        row = _effect(0.4 * whole + rng.normal(0, 1, 40), whole)
        covered += row["effect_low"] <= 0.4 <= row["effect_high"]
    assert 88 <= covered <= 99


@pytest.mark.long
def test_texts_are_written_with_draws_of_their_own(context):
    samples = context.test.balanced(10)
    found = intervention_table(context, samples, SETS, max_new_tokens=12)
    assert set(found["rows"]) == {"none", *SETS}
    for name in SETS:
        row = found["rows"][name]
        assert len(row["random_each"]) == row["draws"] == 5
        assert 1 / 6 <= row["share"] <= 1
        assert sum(share["n"] for share in row["random"].values()) == 5 * 5 * 10
    assert found["rows"]["none"]["outcomes"]["next_token"]["fail"]["mean"] == 1
    # One set at a time gives the same texts.
    alone = intervention_table(
        context, samples, {"A_Verif": SETS["A_Verif"]}, max_new_tokens=12, draws=0
    )
    assert alone["rows"]["A_Verif"]["outcomes"] == found["rows"]["A_Verif"]["outcomes"]
    assert alone["rows"]["A_Verif"]["share"] is None
    close = published_protocol(context, context.test.balanced(3), SETS)
    assert list(close["rows"]) == ["none", *SETS]


def test_the_published_score_set_pools_all_layers_below(context):
    found = finding_heads.score_set(context)
    assert len(found) == len(set(found)) == finding_heads.SCORED
    layers = {int(label[1:].split("N")[0]) for label in found}
    assert layers == {0, 1, 2, 3}
    scores = finding_heads.head_scores(context, ["L0H1", "L1H0"], SETS["GLU_Valid"])
    assert scores["diag"]["neurons"] == 200
    assert scores["diag, GLU_Valid"]["neurons"] == 3
    assert set(scores) == {
        mode + end for mode in ("diag", "ov", "activation") for end in ("", ", GLU_Valid")
    }


def test_sets_along_random_directions_are_what_antipodes_are_judged_by(context):
    """Along a random direction a selection is as opposite as the null says, not more."""
    vectors = torch.randn(4, context.model.d_model, generator=torch.Generator().manual_seed(9))
    layers = range(2, 4)
    null = readouts._opposed_at_random(context.model, vectors[2:], layers, 4, context.settings)
    assert null.shape == (5, 2)
    more = VerificationSettings(n=40, draws=60, seed=1)
    other = readouts._opposed_at_random(context.model, vectors[2:], layers, 4, more)
    low, high = other.min(0), other.max(0)
    assert ((null > low - 0.05) & (null < high + 0.05)).all()
    random = readouts._opposition(torch.randn(8, 144), torch.randn(8, 144))
    assert (other.mean(0) > random).any()  # chosen along w and -w they are more opposite


def test_a_null_of_no_draws_is_refused():
    with pytest.raises(InterpError, match="0 draws"):
        null_of(1.0, np.array([]))


def test_turned_directions_keep_their_lengths_and_angles():
    vectors = torch.randn(3, 20, dtype=torch.float64)
    first, second = turned_directions(vectors, 2, seed=3)
    for turned in (first, second):
        torch.testing.assert_close(turned @ turned.T, vectors @ vectors.T)
        assert (turned - vectors).abs().max() > 0.1
    assert (first - second).abs().max() > 0.1


@pytest.mark.long
def test_exchanged_values_are_those_of_patched_runs(context):
    """Against hooks with the class means of captured values, sample by sample."""
    found = interchange.interchange(context, SETS)
    find, test, ids = context.find, context.test, context.ids
    plain = hooked(context.model, test.tokens)
    odds = (plain[:, ids.this] - plain[:, ids.no]).numpy()
    gap = odds[test.valid].mean() - odds[~test.valid].mean()
    assert found["gap"] == pytest.approx(gap, rel=1e-4)
    means = {}
    for label in (True, False):
        rows = [
            tokens for tokens, valid in zip(find.tokens, find.valid, strict=True) if valid == label
        ]
        seen = site_values(context.model, rows, [(1, "z")], last=2)[1, "z"]
        means[label] = seen.mean(0, keepdim=True)
    for side, label in (("valid", True), ("invalid", False)):
        samples = test.take(np.flatnonzero(test.valid == label))
        before = odds[test.valid == label]
        for exchange, source in ((interchange.OTHER, not label), (interchange.OWN, label)):
            made = make_ablation(
                context.model, SETS["A_Verif"], "patch", values={(1, "z"): means[source]}
            )
            logs = hooked(context.model, samples.tokens, where=2, ablation=made)
            after = (logs[:, ids.this] - logs[:, ids.no]).numpy()
            cell = found["sets"]["A_Verif"]["exchanges"][exchange][side]
            effect = (after - before) * (-1 if label else 1) / gap
            assert cell["effect"]["mean"] == pytest.approx(effect.mean(), abs=1e-4)
            other = ids.no if label else ids.this
            assert cell["flipped"]["mean"] == (logs.argmax(-1) == other).double().mean()
            if exchange == interchange.OTHER:
                beaten = sum(x >= effect[: found["null_n"]].mean() for x in cell["null"])
                assert cell["share"] == pytest.approx((1 + beaten) / 6)


def test_the_whole_stream_exchanged_is_the_other_class(context, monkeypatch):
    """The stream's last layer at the last tokens: the other class's mean turns every verdict."""
    monkeypatch.setattr(type(context), "random_like", lambda self, sets: {n: [] for n in sets})
    sets = {"stream": ["L3.resid_post"]}
    some = [*interchange.EXCHANGES, interchange.OTHER_SAMPLE]
    found = interchange.interchange(context, sets, exchanges=some)
    cells = found["sets"]["stream"]["exchanges"]
    assert list(cells) == some
    for side in ("valid", "invalid"):
        # The verdict is the donor's, whatever the sample is.
        assert cells[interchange.OTHER_SAMPLE][side]["flipped"]["mean"] == 1
        assert cells[interchange.ANOTHER][side]["flipped"]["mean"] == 0
        assert cells[interchange.OTHER][side]["effect"]["mean"] > 0.8
        assert cells[interchange.OTHER][side]["flipped"]["mean"] == 1
        assert abs(cells[interchange.OWN][side]["effect"]["mean"]) < 0.4
        assert cells[interchange.OWN][side]["flipped"]["mean"] == 0


def test_a_table_is_corrected_on_the_samples_of_its_draws():
    """The set beats every draw on the draws' samples, whatever it does on all samples."""
    row = {
        "auc": {"mean": 1.0}, "disabled": {"mean": 0.0},
        "own": {"auc": [0.2] * 20, "disabled": [0.9] * 20},
        "null": {"auc": np.linspace(0.7, 0.9, 20).tolist(), "disabled": [0.1, 0.2] * 10},
    }  # fmt: skip
    assert corrected({"one": row}) == ({"one": pytest.approx(1 / 21)},) * 2
    assert corrected({}) == ({}, {})


def test_no_set_is_exchanged_where_the_chain_has_no_stage(context):
    assert interchange.interchange(context, {})["sets"] == {}


@pytest.mark.long
def test_edited_attempts_differ_in_the_named_place_alone(context):
    """Each edit, read back as text; and the verdicts on it, from hooked runs."""
    valid = context.test.take(np.flatnonzero(context.test.valid))
    invalid = context.test.take(np.flatnonzero(~context.test.valid))
    ids, model = context.ids, context.model
    rows = {row["words"]: row for row in compared.compared(context)["rows"]}
    for (words, expected), (samples, edit) in compared._conditions(valid, invalid).items():
        texts = []
        for i in range(len(samples)):
            if (text := edit(context, samples, i)) is None:
                continue
            texts.append(text)
            before, after = ("".join(model.strings(x)) for x in (samples.tokens[i], text))
            problem = context.problems[samples.problems[i]]
            assert after != before
            asked = int(re.search(r"equals (\d+)", after).group(1))
            written = int(re.findall(r"= (-?\d+) \($", after)[0])
            assert ("this" if written == asked else "not") == expected
            if "target in" not in words:
                assert before.rpartition("=")[0] == after.rpartition("=")[0]
                assert (written == problem.target) == (expected == "this")
                if "number of the question" in words:
                    assert written in problem.numbers
            else:
                assert ("question" in words or "both" in words) == (asked != problem.target)
                said = {int(x) for x in re.findall(r"\(not (\d+)\)", after)}
                changed = "earlier" in words or "both" in words
                assert (said == {problem.target}) is not changed
        assert len(texts) == rows[words]["this"]["n"]
        logs = hooked(model, texts)
        odds = (logs[:, ids.this] - logs[:, ids.no]).numpy()
        assert rows[words]["this"]["mean"] == (odds > 0).mean()
        assert rows[words]["log_odds"]["mean"] == pytest.approx(odds.mean(), abs=1e-3)
    assert rows["own valid attempts"]["this"]["mean"] == 1
    assert rows["result off in its first digit"]["auc"]["mean"] > 0.9
    large = rows["wrong attempts at targets of three digits"]
    assert large["this"]["n"] == len(valid)


@pytest.mark.long
def test_the_chain_is_traced_by_path_patching(context):
    """Every stage's effects are those of `path_patching` into the stage after it."""
    model, task = context.model, context.pairs[0]
    writers = ["L2.mlp_out", "L3.mlp_out"]
    found = chain.chain(context, writers)
    assert found["stages"]
    seen = set()
    for stage, after in zip(found["stages"], [None, *found["stages"]], strict=False):
        if after is None:
            assert stage["receivers"] == writers
        else:
            first = after["heads"][0]["label"]
            layer, head = re.fullmatch(r"L(\d+)H(\d+)", first).groups()
            shared = int(head) * model.n_kv_heads // model.n_heads
            parts = [f"L{layer}H{head}.q", f"L{layer}KV{shared}.k", f"L{layer}KV{shared}.v"]
            assert stage["receivers"][:3] == parts
        scores = path_patching(
            model, task, receivers=stage["receivers"], positions=chain.PLACES, cache=False
        )
        assert np.array(stage["values"]) == pytest.approx(scores.values, abs=1e-6)
        for row in stage["heads"]:
            assert row["label"] not in seen
            seen.add(row["label"])
            assert row["value"] >= chain.LEAST
            assert row["low"] > 0
    places = chain.positions_of(context.find)
    for i, text in enumerate(context.find.tokens[:20]):
        strings = model.strings(text)
        result = "".join(strings[places["t_first"][i] : places["t_ans"][i] + 1])
        assert result == str(context.find.written[i])


def test_a_chain_ends_where_no_head_qualifies(context):
    assert chain.chain(context, ["L0.mlp_out"])["stages"] == []
