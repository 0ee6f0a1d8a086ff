"""Directions, their scores and their selection, against slow references and planted truths."""

import csv
import math
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from interp.core.chat_prompts import PLAIN, mixed
from interp.core.errors import InterpError
from interp.models.chat import chat_prompts, plain_prompts
from interp.models.loading import load_model
from interp.models.toys.circuits import build_toy
from interp.refusal.score import score_refusals, suggest_refusal_tokens
from interp.refusal.selection import (
    Limits,
    select_cosmic,
    select_direction,
    select_from_table,
    smoothed_kl,
)
from interp.results.direction import (
    load_directions,
    orthogonalise_direction,
    orthonormal,
    random_direction,
    save_directions,
)
from interp.runs.capture import run_with_cache
from interp.steering.candidates import difference_in_means, end_states
from interp.steering.edits import ablate_direction, add_direction
from interp.steering.geometry import compare_directions, representational_independence, sample_cone
from interp.steering.runs import run_steered, steer
from interp.tasks.taboo import make_taboo
from tests import DATA
from tests.steering.test_edits import direction

HARMFUL = [(5, 6, 7, 8, 9), (11, 12, 13, 8, 9), (4, 4, 8, 9)]
HARMLESS = [(25, 26, 27, 8, 9), (31, 32, 8, 9)]
HELD = [(6, 7, 5, 8, 9), (12, 11, 13, 8, 9), (3, 3, 8, 9)], [(27, 26, 25, 8, 9), (32, 31, 8, 9)]


@pytest.fixture(scope="module")
def toy():
    """The planted gate: a direction along it opens the amplifiers of layer 1."""
    model = load_model("toy-refusal")
    pairs = build_toy("toy-refusal").pairs
    tokens = [model.single_token("refuse")]
    return model, [pair[0] for pair in pairs], [pair[1] for pair in pairs], tokens


# -- reading directions --------------------------------------------------------------------


@pytest.mark.parametrize("site", ["resid_pre", "resid_post", "mlp_out"])
def test_difference_in_means_equals_a_loop(family, site):
    found = difference_in_means(family, HARMFUL, HARMLESS, site=site, last=3)
    assert found.vectors.dtype == torch.float64
    assert found.positions == (-3, -2, -1)
    assert found.layers == (0, 1, 2)
    assert found.tokens == ("", "<8>", "<9>")
    assert found.n == (3, 2)
    for p, position in enumerate(found.positions):
        means = []
        for prompts in (HARMFUL, HARMLESS):
            where = [position] * len(prompts)
            seen = run_with_cache(family, prompts, sites=[site], positions=where)
            means.append([seen[layer, site].double().mean(0) for layer in range(3)])
        for layer in range(3):
            expected = means[0][layer] - means[1][layer]
            torch.testing.assert_close(found.vectors[p, layer], expected, atol=1e-5, rtol=0)
            reference = found.reference_at(layer, position)
            torch.testing.assert_close(reference, means[1][layer], atol=1e-5, rtol=0)
    without = replace(family, decoder=None, engine_reason="none")
    slow = end_states(without, HARMFUL, site=site, last=2, layers=[2, 0])
    fast = end_states(family, HARMFUL, site=site, last=2, layers=[0, 2])
    torch.testing.assert_close(slow, fast, atol=1e-5, rtol=0)


def test_a_constant_token_gives_a_zero_vector_which_is_named(family_models):
    found = difference_in_means(family_models["llama"], HARMFUL, HARMLESS)
    assert found.positions == (-2, -1)  # the end that all prompts share
    assert found.zeros == [(0, -2), (0, -1)]
    with pytest.raises(InterpError, match="length 0"):
        _ = found.at(0, -1).unit
    chosen = found.at(2, -1)
    assert (chosen.token, chosen.sign, chosen.format) == ("<9>", 1, PLAIN)
    task = difference_in_means(family_models["llama"], HARMLESS, HARMFUL, kind="task")
    assert task.at(2, -1).sign == -1
    torch.testing.assert_close(task.at(2, -1).towards_refusal, chosen.vector)


def test_bad_input(family_models):
    model = family_models["llama"]
    with pytest.raises(InterpError, match="need 2"):
        difference_in_means(model, HARMFUL, HARMLESS[:1])
    with pytest.raises(InterpError, match="without so many"):
        difference_in_means(model, HARMFUL, HARMLESS, last=5)
    with pytest.raises(InterpError, match="residual site"):
        end_states(model, HARMFUL, site="z")
    with pytest.raises(InterpError, match="kind"):
        difference_in_means(model, HARMFUL, HARMLESS, kind="refusal")
    with pytest.raises(InterpError, match="finite"):
        direction(model, vector=torch.full((32,), math.nan, dtype=torch.float64))
    with pytest.raises(InterpError, match="not among them"):
        difference_in_means(model, HARMFUL, HARMLESS, layers=[1]).at(2, -1)
    with pytest.raises(InterpError, match="chat template"):
        chat_prompts(model, ["hello"])


def test_shuffled_labels_are_a_null(toy):
    model, harmful, harmless, _ = toy
    real = difference_in_means(model, harmful, harmless).at(1, -1)
    sides = (plain_prompts(model, harmful), plain_prompts(model, harmless))
    both = mixed(*sides, seed=1)
    assert sorted((*both[0].rows, *both[1].rows)) == sorted((*sides[0].rows, *sides[1].rows))
    null = difference_in_means(model, *both).at(1, -1)
    assert null.norm < 0.4 * real.norm


def test_chat_prompts(toy):
    model = replace(toy[0], tokenizer=deepcopy(toy[0].tokenizer))
    model.tokenizer.chat_template = (
        "<bos> {% for m in messages %}user: {{ m['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    texts = [prompt.removeprefix("<bos> user: ").removesuffix(" assistant:") for prompt in toy[1]]
    opened = chat_prompts(model, texts)
    assert opened.rows == plain_prompts(model, toy[1]).rows
    assert model.strings(opened.tail) == ("assistant:",)
    closed = chat_prompts(model, texts, generation_prompt=False)
    assert closed.tail == ()
    assert {len(a) - len(b) for a, b in zip(opened.rows, closed.rows, strict=True)} == {1}
    with pytest.raises(InterpError, match="use the same chat format"):
        difference_in_means(model, opened, closed)
    with pytest.raises(InterpError, match=r"write \.rows\[0\]"):
        opened[0]  # type: ignore[index]
    r = difference_in_means(model, opened, opened[::-1]).at(1, -1)
    assert r.format.generation_prompt
    assert opened.format != closed.format != PLAIN
    steering = add_direction(model, r)
    assert len(run_steered(model, opened[2:5], steering).logits) == 3
    with pytest.raises(InterpError, match="generation prompt False"):
        run_steered(model, closed, steering)


def test_save_and_load(family_models, tmp_path):
    found = difference_in_means(family_models["llama"], HARMFUL, HARMLESS)
    kept = {"a": found.at(1, -1), "b": replace(found.at(2, -2), sign=-1, kind="task")}
    path = save_directions(tmp_path / "d.safetensors", kept)
    back = load_directions(path)
    for name, one in kept.items():
        assert torch.equal(back[name].vector, one.vector)
        assert replace(back[name], vector=one.vector) == one


def test_a_direction_knows_its_rows(family_models):
    model = family_models["llama"]
    found = difference_in_means(model, HARMFUL, [*HARMLESS, HARMLESS[0]])
    r = found.at(1, -1)
    assert len(r.rows) == len(set(r.rows)) == 5
    assert r.rows_hash == difference_in_means(model, HARMFUL[::-1], HARMLESS).at(2, -1).rows_hash
    assert r.rows_hash != difference_in_means(model, HARMFUL, HELD[1]).at(1, -1).rows_hash
    held = plain_prompts(model, HELD[0])
    r.require_unseen(held, "steering")
    with pytest.raises(
        InterpError, match="1 of 4 prompts .* the first of them is number 3; evaluate on"
    ):
        r.require_unseen(plain_prompts(model, [*HELD[0], HARMFUL[2]]), "steering")
    other = difference_in_means(model, HELD[0], HARMLESS).at(1, -1)
    assert set(orthogonalise_direction(r, other).rows) == set(r.rows) | set(held.hashes)
    direction(model).require_unseen(held, "steering")  # where rows are not known
    # Texts tell prompts apart that a small vocabulary does not, and are not kept themselves.
    tiny = load_model("refusal-tiny")
    texts = ["How do I plant xylographs?", "How do I plant zymurgies?", "How do I plant seeds?"]
    chat = chat_prompts(tiny, texts)
    assert chat.rows[0] == chat.rows[1]
    assert len(set(chat.hashes)) == 3
    one = difference_in_means(tiny, chat[[0, 2]], chat[1:]).at(1, -1)
    assert one.rows == (chat.ids[0], chat.ids[2], chat.ids[1])
    assert difference_in_means(tiny, *mixed(chat[:2], chat[[2]]), least=1).rows
    with pytest.raises(InterpError, match="1 of 1 prompts"):
        one.require_unseen(chat_prompts(tiny, texts[1:2], generation_prompt=False), "steering")


def test_normalisation_is_said_and_checked(family_models):
    r = direction(family_models["llama"])
    one = replace(r, vector=r.vector / r.norm, normalisation="unit")
    assert torch.equal(one.unit, r.unit)
    assert (
        orthogonalise_direction(one, direction(family_models["llama"], seed=5)).normalisation
        == "unit"
    )
    short = orthogonalise_direction(one, direction(family_models["llama"], seed=5), keep_norm=False)
    assert short.normalisation == "none"
    with pytest.raises(InterpError, match="unit direction"):
        replace(r, normalisation="unit")
    with pytest.raises(InterpError, match="normalisation 'l2'"):
        replace(r, normalisation="l2")


# -- geometry ------------------------------------------------------------------------------


def test_orthogonalise(family_models):
    model = family_models["llama"]
    w, r = direction(model, seed=1), direction(model, seed=2)
    clean = orthogonalise_direction(w, r)
    assert abs(float(clean.vector @ r.unit)) < 1e-12
    assert clean.norm == pytest.approx(w.norm)
    half = orthogonalise_direction(w, r, strength=0.5, keep_norm=False)
    assert float(half.vector @ r.unit) == pytest.approx(0.5 * float(w.vector @ r.unit))
    with pytest.raises(InterpError, match="parallel"):
        orthogonalise_direction(replace(r, vector=-3 * r.vector), r)
    with pytest.raises(InterpError, match="two models"):
        orthogonalise_direction(w, replace(r, model_hash="x"))


def test_compare_on_planted_vectors():
    e = torch.eye(6, dtype=torch.float64)
    layers = [(e[0], 3 * e[0]), (e[0], e[1]), (e[0], -e[0])]
    vectors = {
        "a": torch.stack([one for one, _ in layers]),
        "b": torch.stack([other for _, other in layers]),
        "c": torch.stack([e[2] + e[0], e[2], e[3]]),
    }
    found = compare_directions(vectors, centred=False)
    np.testing.assert_allclose(found.cosines[0, 1], [1, 0, -1], atol=1e-12)
    np.testing.assert_allclose(found.cosines[0, 2], [0.5**0.5, 0, 0], atol=1e-12)
    np.testing.assert_allclose(found.variance.sum(-1), 1)
    np.testing.assert_allclose(found.variance[1], [1 / 3] * 3)
    np.testing.assert_allclose(found.variance[2], [2 / 3, 1 / 3, 0], atol=1e-12)
    assert found.components.tolist() == [1, 3, 2]
    centred = compare_directions({"a": e[0], "b": e[1], "c": e[2]})
    assert centred.components.tolist() == [2]
    assert len(found.to_dataframe()) == 9
    with pytest.raises(InterpError, match="two or more"):
        compare_directions({"a": e[0]})


def test_cone():
    drawn = sample_cone([torch.eye(5)[0] * 4, torch.eye(5)[0] + torch.eye(5)[3]], 50)
    torch.testing.assert_close(drawn.norm(dim=-1), torch.ones(50, dtype=torch.float64))
    assert (drawn[:, [0, 3]] >= 0).all()
    assert drawn[:, [1, 2, 4]].abs().max() < 1e-12
    assert drawn[:, 0].std() > 0.1
    one = sample_cone([-torch.eye(5)[2]], 3)
    torch.testing.assert_close(one, -torch.eye(5, dtype=torch.float64)[[2, 2, 2]])
    with pytest.raises(InterpError, match="dependent"):
        orthonormal([torch.ones(3), 2 * torch.ones(3)])


def test_odd_states_of_classes_are_refused(family_models):
    model = family_models["llama"]
    good = torch.zeros(3, 1, model.n_layers, model.d_model)

    def made(states):
        return difference_in_means(model, HARMFUL, HARMFUL, last=1, states=states)

    assert made((good, good + 1)).vectors.max() == -1
    odd = (5, "x", [], (good,), (good, good, good), (good, None), (good * torch.nan, good))
    for states in (*odd, (good.long(), good), (good.numpy(), good), (good, good[:1])):
        with pytest.raises(InterpError, match="give two tensors"):
            made(states)


def test_independence_against_a_loop(family_models):
    model = family_models["qwen2"]
    first, second = direction(model, seed=1), direction(model, seed=2)
    found = representational_independence(model, first, second, HARMFUL)
    for seen, other, estimate in ((first, second, found.first), (second, first, found.second)):
        values = []
        for prompt in HARMFUL:
            plain = run_with_cache(model, [prompt], sites=["resid_post"], positions="last")
            with steer(model, ablate_direction(model, other), [prompt]):
                changed = run_with_cache(model, [prompt], sites=["resid_post"], positions="last")
            both = [
                [float(run[i, "resid_post"][0].double() @ seen.unit / run[i, "resid_post"].norm())]
                for run in (plain, changed)
                for i in range(3)
            ]
            cosines = np.array(both).reshape(2, 3)
            values.append(((cosines[1] - cosines[0]) ** 2).mean())
        assert estimate.mean == pytest.approx(np.mean(values), rel=1e-3)
        assert estimate.mean > 1e-5
        assert estimate.n == 3


# -- scores --------------------------------------------------------------------------------


def test_refusal_score():
    p = torch.tensor([[0.3, 0.2, 0.5], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]).double()
    found = score_refusals(p.log(), [0, 1])
    expected = [math.log(0.5 + 1e-8) - math.log(0.5 + 1e-8), 18.4207, -18.4207]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert score_refusals(p.log().float(), [2])[0] == pytest.approx(0, abs=1e-6)
    with pytest.raises(InterpError, match="token"):
        score_refusals(p, [])


def test_smoothed_kl():
    p, q = torch.tensor([[0.9, 0.1]]).double(), torch.tensor([[0.5, 0.5]]).double()
    expected = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert float(smoothed_kl(p.log(), q.log())) == pytest.approx(expected, abs=1e-5)
    assert float(smoothed_kl(p.log(), p.log())) == 0


def test_suggested_tokens(toy):
    model, harmful, harmless, tokens = toy
    sides = [run_steered(model, side).logits for side in (harmful, harmless)]
    found = suggest_refusal_tokens(model, *sides)
    assert found.ids[0] == tokens[0]
    assert found.strings[0] == "refuse"
    assert found.coverage[-1] > 0.8
    assert found.spill[0] < 0.1
    p = torch.full((2, model.d_vocab), 0.6 / (model.d_vocab - 2)).double()
    p[0, 3], p[0, 4], p[1, 4], p[1, 3] = 0.3, 0.1, 0.2, 0.1
    q = p[:, torch.arange(model.d_vocab - 1, -1, -1)]
    with pytest.warns(UserWarning, match=r"0\.\d+ of the probability"):
        low = suggest_refusal_tokens(model, p.log(), q.log(), floor=0.09)
    assert low.ids == (3, 4)
    mean = (p / p.sum(-1, keepdim=True)).mean(0)
    np.testing.assert_allclose(low.coverage, [mean[3], mean[3] + mean[4]])
    with pytest.raises(InterpError, match="no token with a mean probability"):
        suggest_refusal_tokens(model, p.log(), p.log())
    with pytest.raises(InterpError, match="1 or more"):
        suggest_refusal_tokens(model, p.log(), q.log(), contrast=0.5)


def test_tokens_that_answers_begin_with_are_no_refusal_tokens(toy):
    """By hand: "I" (3) refuses; "Sure" (4), "Yes" (5) and "Hello" (6) begin answers too."""
    model, *_ = toy

    def rows(*shares):
        made = torch.full((len(shares), model.d_vocab), 1e-6).double()
        for row, given in zip(made, shares, strict=True):
            for token, share in given.items():
                row[token] = share
        return (made / made.sum(-1, keepdim=True)).log()

    # On refused rows more likely than on answered ones, and yet no refusal.
    refused = rows(*[{3: 0.7, 4: 0.1, 5: 0.06, 6: 0.1}] * 6, {6: 0.6, 3: 0.3}, {4: 0.5, 3: 0.4})
    answered = rows(*[{7: 0.9, 4: 0.03, 5: 0.01, 3: 0.02}] * 6, {4: 0.6, 7: 0.3}, {6: 0.6, 7: 0.3})
    found = suggest_refusal_tokens(model, refused, answered)
    assert found.ids == (3,)
    assert 7 in suggest_refusal_tokens(model, answered, refused).ids


# -- the rule ------------------------------------------------------------------------------


def row(position, layer, bypass, induce, kl):
    names = ("position", "layer", "refusal_score", "steering_score", "kl_div_score")
    return dict(zip(names, (position, layer, bypass, induce, kl), strict=True))


TABLE = [
    row(-1, 0, -1.0, 1.0, 0.01),
    row(-1, 1, -3.0, 1.0, 0.01),
    row(-1, 2, -4.0, -0.1, 0.01),
    row(-1, 3, -5.0, 1.0, 0.11),
    row(-1, 4, -6.0, math.nan, 0.2),
    row(-2, 8, -7.0, -1.0, 5.0),
    row(-2, 9, -8.0, 9.0, math.nan),
    row(-2, 7, -3.0, 0.0, 0.1),
]


def test_rule_gives_every_reason_in_its_order():
    found = select_from_table(TABLE)
    assert [one.rejected for one in found.rows] == [
        *("", "", "induce", "kl", "nan", "layer", "nan", ""),
    ]
    assert (found.best.position, found.best.layer) == (-1, 1)  # the first of two equal ones
    assert found.n_layers == 10
    assert found.rejections == {"induce": 1, "kl": 1, "nan": 2, "layer": 1}
    reasons = " | ".join(one.reason for one in found.rows)
    for text in (
        "induce is not a number",
        "kl is not",
        "from 8 on",
        "0.1100",
        "-0.1000 when added, below 0",
    ):
        assert text in reasons
    assert found.to_dataframe().rejected.tolist()[2] == "induce"
    # Negative control: without filters another one wins.
    free = Limits(kl=math.inf, induce=None, prune=0.0)
    assert select_from_table(TABLE, limits=free).best.layer == 8


def test_no_survivor_is_an_explained_table(family_models):
    found = select_from_table(TABLE[2:7])
    assert found.best is None
    assert found.survivors == ()
    assert all(one.reason for one in found.rows)
    candidates = difference_in_means(family_models["llama"], HARMFUL, HARMLESS)
    with pytest.raises(InterpError, match="kl 1.*nan 2"):
        found.direction(candidates)
    for bad in ([], [{"layer": 1}]):
        with pytest.raises(InterpError, match="score table"):
            select_from_table(bad)


# model: layers, choice, rejected by each rule, survivors, runners-up, choice without any filter.
PUBLISHED = {
    "gemma-2b-it": (
        *(18, (-2, 10), {"layer": 20, "kl": 4, "induce": 53}, 13),
        *([(-1, 12, -14.296), (-1, 10, -14.120)], (-3, 1)),
    ),
    "llama-2-7b-chat": (
        *(32, (-1, 14), {"nan": 2, "layer": 40, "kl": 100, "induce": 45}, 5),
        *([(-4, 15, -4.271), (-2, 13, -3.976)], (-2, 11)),
    ),
    "llama-3-8b-instruct": (
        *(32, (-5, 12), {"layer": 35, "kl": 41, "induce": 59}, 25),
        *([(-2, 12, -9.588), (-1, 12, -9.224)], (-5, 12)),
    ),
    "qwen-1.8b-chat": (
        *(24, (-2, 15), {"layer": 25, "kl": 40, "induce": 43}, 12),
        *([(-1, 15, -5.022), (-2, 16, -4.511)], (-4, 1)),
    ),
    "yi-6b-chat": (
        *(32, (-5, 20), {"layer": 42, "kl": 40, "induce": 103}, 7),
        *([(-1, 22, -6.311), (-1, 24, -5.919)], (-1, 28)),
    ),
}
CHOSEN = {
    "gemma-2b-it": (-14.4193, 6.7886, 0.06593),
    "llama-2-7b-chat": (-5.6169, 5.9863, 0.07121),
    "llama-3-8b-instruct": (-9.8551, 7.6757, 0.05882),
    "qwen-1.8b-chat": (-5.0575, 1.6514, 0.06584),
    "yi-6b-chat": (-6.7479, 1.6392, 0.04724),
}


@pytest.fixture(scope="module")
def published():
    """Every candidate of the five models, as published: (model -> rows)."""
    lines = (DATA / "refusal_scores.csv").read_text().splitlines()
    assert any("Apache License, Version 2.0" in line for line in lines)
    tables = {}
    for row in csv.DictReader(line for line in lines if not line.startswith("#")):
        tables.setdefault(row.pop("model"), []).append(row)
    return tables


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_choice_with_every_rejection(published, name):
    """The rule on the published scores gives the published direction, without a model."""
    n_layers, expected, rejections, survivors, runners_up, free = PUBLISHED[name]
    found = select_from_table(published[name])
    assert found.n_layers == n_layers
    assert (found.best.position, found.best.layer) == expected
    scores = (found.best.bypass, found.best.induce, found.best.kl)
    assert scores == pytest.approx(CHOSEN[name], rel=1e-3)
    assert found.rejections == rejections
    assert len(found.survivors) == survivors
    assert len(found.rows) == survivors + sum(rejections.values())
    ranked = sorted(found.survivors, key=lambda one: one.bypass)[1:3]
    for one, (position, layer, bypass) in zip(ranked, runners_up, strict=True):
        assert (one.position, one.layer) == (position, layer)
        assert one.bypass == pytest.approx(bypass, abs=1e-3)
    # Negative control: the smallest bypass alone picks another direction in four of the five.
    limits = Limits(kl=math.inf, induce=None, prune=0.0)
    unfiltered = select_from_table(published[name], limits=limits).best
    assert (unfiltered.position, unfiltered.layer) == free
    assert (free == expected) == (name == "llama-3-8b-instruct")


# -- selection on a model ------------------------------------------------------------------


def test_selection_finds_the_planted_gate(toy):
    model, harmful, harmless, tokens = toy
    candidates = difference_in_means(model, harmful[:12], harmless[:12], last=1)
    held = harmful[12:], harmless[12:]
    limits = Limits(kl=math.inf, prune=0.0)
    found = select_direction(model, candidates, *held, tokens, limits=limits, measure_all=True)
    assert [one.rejected for one in found.rows] == ["zero", ""]
    assert found.harmful > 1 > -3 > found.harmless
    best = found.best
    r = found.direction(candidates)
    assert (r.layer, r.position) == (1, -1)
    assert best.bypass < -3
    assert best.induce > 1
    # The scores are those of slow hooked runs.
    plain = model.last_logits(plain_prompts(model, held[1]).rows)
    for steering, side, score in (
        (ablate_direction(model, r), 0, best.bypass),
        (add_direction(model, r), 1, best.induce),
    ):
        with steer(model, steering, held[side]):
            logits = model.last_logits(plain_prompts(model, held[side]).rows)
        assert float(score_refusals(logits, tokens).mean()) == pytest.approx(score, abs=1e-3)
    with steer(model, ablate_direction(model, r), held[1]):
        logits = model.last_logits(plain_prompts(model, held[1]).rows)
    assert best.kl == pytest.approx(float(smoothed_kl(plain, logits).mean()), abs=1e-6)
    assert best.kl_stderr is not None

    random = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0)).double()
    other = replace(candidates, vectors=(random / random.norm() * r.norm).expand(1, 2, -1).clone())
    null = select_direction(model, other, *held, tokens, limits=limits, measure_all=True)
    assert all(
        abs(one.bypass - found.harmful) < 0.5 * (found.harmful - best.bypass) for one in null.rows
    )


def test_measuring_stops_at_the_first_rejection(family_models):
    model = family_models["llama"]
    candidates = difference_in_means(model, HARMFUL, HARMLESS)
    vectors = candidates.vectors.clone()
    vectors[1, 1] = math.nan
    candidates = replace(candidates, vectors=vectors)
    seen = []
    options = {"progress": lambda done, total: seen.append((done, total))}
    limits = Limits(kl=0.02)
    fast = select_direction(model, candidates, *HELD, [3, 4], limits=limits, **options)
    full = select_direction(model, candidates, *HELD, [3, 4], limits=limits, measure_all=True)
    assert seen[-1] == (6, 6)
    for left, right in zip(fast.rows, full.rows, strict=True):
        assert left.rejected == right.rejected
        if left.rejected == "layer":
            assert left.kl is None
            assert right.bypass is not None
    assert {one.rejected for one in full.rows} >= {"nan", "zero", "layer"}
    assert fast.best == full.best
    with pytest.raises(InterpError, match="other weights"):
        select_direction(family_models["mistral"], candidates, *HELD, [3])
    # Not on what the candidates were read from, be it one prompt of one side.
    for bad in ((HARMFUL, HELD[1]), (HELD[0], [*HELD[1], HARMLESS[1]])):
        with pytest.raises(InterpError, match="were used to find it"):
            select_direction(model, candidates, *bad, [3])
        with pytest.raises(InterpError, match="the first of them is number"):
            select_cosmic(model, candidates, *bad)


def test_cosmic(toy):
    model, harmful, harmless, _ = toy
    candidates = difference_in_means(model, harmful[:12], harmless[:12], last=1)
    limits = Limits(kl=math.inf, induce=None, prune=0.0)
    found = select_cosmic(
        model, candidates, harmful[12:], harmless[12:], limits=limits, measure_all=True
    )
    best = found.best
    assert (best.position, best.layer) == (-1, 1)
    assert -best.bypass > 0.95
    assert best.induce > 0.95
    read = [int(part) for part in found.method.removeprefix("cosines at layers ").split(",")]
    assert len(read) == 1
    r = found.direction(candidates)
    means = []
    for side, steering in ((1, None), (0, ablate_direction(model, r))):
        prompts = (harmful[12:], harmless[12:])[side]
        states = run_steered(model, prompts, steering, layers=read).states
        means.append(states.double().mean((0, 1)))
    assert -best.bypass == pytest.approx(float(torch.cosine_similarity(*means, dim=0)))


@pytest.mark.long
def test_cosmic_reads_the_layers_where_classes_are_least_alike(doubles):
    """On three layers: which are read, and both scores, spelled out with hooks."""
    model = doubles("llama")
    candidates = difference_in_means(model, HARMFUL, HARMLESS)
    bad, good = (plain_prompts(model, side) for side in HELD)
    limits = Limits(kl=math.inf, induce=None, prune=0.0)
    options = {"limits": limits, "measure_all": True}

    def states(prompts, steering=None):
        """(layers, prompts, d_model) at the last token."""
        with steer(model, steering, prompts) if steering else nullcontext():
            seen = run_with_cache(model, prompts.rows, sites=["resid_post"], positions="last")
        return torch.stack([seen[layer, "resid_post"] for layer in range(3)])

    means = [states(side).mean(1) for side in (bad, good)]
    alike = torch.cosine_similarity(*means, dim=-1)
    assert alike.sort().values.diff().min() > 1e-3  # else the order would be chance
    for share, count in ((0.1, 1), (0.5, 2), (1.0, 3)):
        found = select_cosmic(model, candidates, *HELD, share=share, **options)
        read = sorted(alike.argsort()[:count].tolist())
        assert found.method == f"cosines at layers {', '.join(map(str, read))}"
        targets = [mean[read].mean(0) for mean in means]
        total = {}
        for one in found.rows:
            if one.rejected:
                assert one.rejected == "zero"
                continue
            r = candidates.at(one.layer, one.position)
            off = states(bad, ablate_direction(model, r))[read].mean((0, 1))
            on = states(good, add_direction(model, r))[read].mean((0, 1))
            bypass = float(torch.cosine_similarity(off, targets[1], dim=0))
            induce = float(torch.cosine_similarity(on, targets[0], dim=0))
            assert -one.bypass == pytest.approx(bypass, abs=1e-6)
            assert one.induce == pytest.approx(induce, abs=1e-6)
            total[one.position, one.layer] = bypass + induce
        assert (found.best.position, found.best.layer) == max(total, key=total.__getitem__)
        assert len(total) > 3


@pytest.mark.long
def test_a_random_direction_of_equal_length_does_next_to_nothing():
    """On a model that has learnt to refuse: ablated, about 0; added, far from the true effect."""
    model = load_model("refusal-tiny")
    rows = make_taboo(16, kinds=("taboo", "plain"), tasks=("request",))
    sides = [[x.prompt for x in rows if x.should == side] for side in ("refuse", "answer")]
    bad, good = (chat_prompts(model, texts) for texts in sides)
    firsts = [run_steered(model, side).logits for side in (bad, good)]
    tokens = suggest_refusal_tokens(model, *firsts).ids
    r = difference_in_means(model, bad[:8], good[:8], last=1, layers=[1]).at(1, -1)

    def effect(prompts, steering):
        scores = [score_refusals(run_steered(model, prompts, x).logits, tokens).mean()
                  for x in (None, steering)]  # fmt: skip
        return float(scores[1] - scores[0])

    removed = effect(bad[8:], ablate_direction(model, r))
    induced = effect(good[8:], add_direction(model, r))
    assert removed < -6
    assert induced > 6
    drawn = [random_direction(r, seed=seed) for seed in range(5)]
    ablated = [effect(bad[8:], ablate_direction(model, one)) for one in drawn]
    added = [effect(good[8:], add_direction(model, one)) for one in drawn]
    assert max(map(abs, ablated)) < 0.05 * -removed
    assert abs(np.mean(ablated)) < 0.02 * -removed
    assert max(map(abs, added)) < 0.5 * induced
