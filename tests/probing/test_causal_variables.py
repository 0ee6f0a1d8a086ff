"""A subspace that holds a variable: exchanges equal hooked runs, planted truth, and rivals."""

from itertools import permutations

import numpy as np
import pytest
import torch

import interp
from interp.core.components import Component
from interp.core.errors import InterpError
from interp.models.loading import reinitialised
from interp.probing.causal_variables import _exchanged, _exchanges, _halves, fit_subspace
from interp.runs.change import Change
from interp.runs.kinds import one_edit
from interp.runs.stored_runs import keep_runs

LETTERS = "bcd"
"""Repeated after "a": what follows "a" the second time is the answer."""


@pytest.fixture(scope="module")
def cases():
    """Texts of the induction toy, and the letter that followed "a"."""
    rest = ["".join(x) for x in permutations("efgh", 3)]
    texts, values = [], []
    for letter in LETTERS:
        for others in rest[:12]:
            before = f"{others[0]} a {letter} {others[1]} {others[2]}"
            texts.append(f"<bos> {before} a")
            values.append(letter)
    return texts, values


ANSWERS = {letter: f" {letter}" for letter in LETTERS}


def answers_for(model):
    """The answers as the tokeniser writes them."""
    return {x: model.tokenize(x).tokens[-1] for x in LETTERS}


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("layer", [0, 2])
def test_exchanges_are_those_of_hooks(family_models, name, layer):
    model = family_models[name]
    rows = [(3, 4, 5, 6, 7), (5, 6, 7), (9, 8, 3, 4), (7, 7, 2)]
    runs = keep_runs(model, rows, last=1, whole=True)
    states = runs.read([(layer, "resid_post")])[layer, "resid_post"][:, -1]
    base, source = np.array([2, 0, 0, 3, 1]), np.array([0, 1, 3, 2, 1])
    subspace = torch.linalg.qr(torch.randn(model.d_model, 3))[0].T
    found = _exchanged(runs, base, states[source], subspace, layer, -1)
    for i, (one, other) in enumerate(zip(base, source, strict=True)):
        new = states[one] + (states[other] - states[one]) @ subspace.T @ subspace
        edit = one_edit(
            "set",
            Component(layer, "resid_post"),
            lambda old, tokens, new=new: new[None],
            positions=-1,
        )
        with interp.intervene(model, Change(name="set", edits=(edit,))):
            torch.testing.assert_close(
                found[i], model.last_logits([rows[one]])[0], atol=2e-5, rtol=1e-4
            )


def test_a_planted_variable_is_found_and_the_rivals_fail(toy, cases):
    texts, values = cases
    found = fit_subspace(
        toy, texts, values, answers_for(toy), layer=1, dim=2, n=48, steps=60, rate=0.05
    )
    assert found["whole state"].changed.mean == 1
    assert found["fitted"].changed.low > 0.8
    assert found["fitted"].kept.low > 0.8
    assert found["means"].changed.low > 0.8
    assert found["random"].changed.mean < 0.5
    assert found["other labels"].changed.high < 0.8
    assert found.loss[-1] < found.loss[0]
    torch.testing.assert_close(found.rows @ found.rows.T, torch.eye(2).double(), atol=1e-6, rtol=0)
    table = found.to_dataframe()
    assert list(table["subspace"])[0] == "fitted"
    assert "2 dimensions" in repr(found)
    with pytest.raises(InterpError, match="choose from"):
        found["magic"]


@pytest.mark.long
def test_before_the_layer_that_writes_it_nothing_is_there(toy, cases):
    """Layer 0 writes which letter came before each token; the answer is found in layer 1 only."""
    texts, values = cases
    found = fit_subspace(
        toy, texts, values, answers_for(toy), layer=0, dim=2, n=48, steps=60, rate=0.05
    )
    assert found["whole state"].changed.mean < 0.2
    assert found["fitted"].changed.mean < 0.5


def test_a_seed_gives_the_same_fit_and_an_untrained_model_is_beside(family_models):
    model = family_models["llama"]
    rng = np.random.default_rng(0)
    rows = [tuple(rng.integers(3, 30, 6).tolist()) for _ in range(16)]
    values, answers = [0, 1] * 8, {0: 4, 1: 5}
    options = {"layer": 1, "n": 8, "steps": 3}
    one, same = (fit_subspace(model, rows, values, answers, **options) for _ in range(2))
    assert torch.equal(one.rows, same.rows)
    beside = fit_subspace(model, rows, values, answers, untrained=True, **options)
    assert [test.name for test in beside.tests][-2:] == ["other labels", "untrained"]
    assert reinitialised(model).hash != model.hash
    assert reinitialised(model, seed=1).hash == reinitialised(model, seed=1).hash


def test_refusals(family_models):
    model = family_models["llama"]
    rows, values, answers = [(3, 4, i) for i in range(8)], [0, 1] * 4, {0: 4, 1: 5}
    for arguments, options, match in (
        ((rows, [0] * 8, answers), {}, "two values"),
        ((rows, values[:4], answers), {}, "one value"),
        ((rows, [0] * 6 + [1] * 2, answers), {}, "four prompts"),
        ((rows, values, {0: 4}), {}, "no answer"),
        ((rows, values, {0: 4, 1: 4}), {}, "equal answers"),
        ((rows, values, answers), {"layer": 9}, "a layer"),
        ((rows, values, answers), {"position": 0}, "a token"),
        ((rows, values, answers), {"dim": 999}, "fewer dimensions"),
        ((rows, values, answers), {"position": -5}, "shorter prompt"),
    ):
        with pytest.raises(InterpError, match=match):
            fit_subspace(model, *arguments, **{"layer": 0, **options})


@pytest.mark.long
def test_the_fit_of_transformer_lens_on_the_same_exchanges_does_no_better(toy, cases):
    """Its distributed alignment search: the same loss, data and steps, another parametrisation."""
    from transformer_lens.tools.analysis import interchange as peer

    texts, values = cases
    answers, steps, n = answers_for(toy), 60, 48
    rows = torch.tensor([toy.tokenize(text).tokens for text in texts])
    codes = np.array([LETTERS.index(value) for value in values])
    rng = np.random.default_rng(0)  # as in `fit_subspace`
    half = _halves(codes, rng)
    (base, source), (unseen, unseen_source) = (
        _exchanges(codes, np.flatnonzero(half == side), n, rng) for side in (0, 1)
    )
    hook, classes = "blocks.1.hook_resid_post", [answers[letter] for letter in LETTERS]

    def logits(tokens):
        return toy.bridge(tokens)[:, -1, classes]

    def last(chosen):
        return torch.full((len(chosen),), rows.shape[1] - 1)

    theirs = peer.fit_das(
        toy.bridge, hook, rows[base], rows[source], torch.from_numpy(codes[source]), logits,
        rank=2, base_positions=last(base), source_positions=last(source), epochs=steps,
        batch_size=n, lr=0.05,
    )  # fmt: skip
    ours = fit_subspace(toy, texts, values, answers, layer=1, dim=2, n=n, steps=steps, rate=0.05)
    states = peer.collect_activations(
        toy.bridge, hook, rows[unseen_source], logits, positions=last(unseen)
    )
    swap = peer.SubspaceInterchange(theirs.basis)
    said = peer.intervened_logits(
        toy.bridge, hook, swap, rows[unseen], states, logits, positions=last(unseen)
    )
    right = (said.argmax(-1).numpy() == codes[unseen_source]).mean()
    found = ours["fitted"]
    share = (found.changed.mean * found.changed.n + found.kept.mean * found.kept.n) / n
    cosines = torch.linalg.svdvals(ours.rows @ theirs.basis.double())
    assert share == right == 1
    assert theirs.losses[-1] < theirs.losses[0]
    assert cosines[-1] > 0.5
