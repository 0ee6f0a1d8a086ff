"""Toys in which some heads carry the answer, some only hold it, and some disturb it."""

import numpy as np
import pytest

from interp.core.errors import InterpError
from interp.core.prompts import PromptPair, Task
from interp.models.loading import wrap
from interp.models.toys.build import word_tokenizer
from interp.models.toys.planted import planted_heads
from interp.patching.activation import activation_patching


def loaded(toy):
    model = wrap(toy.model, word_tokenizer(toy.vocabulary), name=toy.name)
    pairs = tuple(
        PromptPair(clean=clean, corrupted=corrupted, answers=(yes,), wrong=(no,))
        for clean, corrupted, yes, no in toy.pairs
    )
    return model, Task(name=toy.name, pairs=pairs, description="")


@pytest.mark.parametrize("seed", range(3))
def test_carriers_alone_have_a_mean_effect(seed):
    toy = planted_heads(carriers=2, decoys=2, distractors=2, pairs=64, seed=seed)
    model, task = loaded(toy)
    effects = activation_patching(
        model, task, site="z", by=("layer", "head"), unit="metric"
    ).effects.reshape(64, 3, 4)
    of = {role: [] for role in ("carrier", "decoy", "distractor", "random")}
    for layer, head in np.ndindex(3, 4):
        of[toy.roles.get(f"L{layer}H{head}", "random")].append(effects[:, layer, head])
    carried = np.sum(of["carrier"], 0)
    assert carried == pytest.approx(np.full(64, 10.0), abs=0.05)
    assert np.mean(of["carrier"], 1).min() > 10 / 3 - 0.1
    for role in ("decoy", "random"):
        assert np.abs(of[role]).max() < 0.05
    for one in of["distractor"]:
        assert one.std() > 0.1
        assert abs(one.mean()) < 4 * one.std() / np.sqrt(64)
    # The logit difference is that of the docstring: everything else is what the parts write.
    assert effects.sum((1, 2)) == pytest.approx(
        np.sum(of["carrier"], 0) + np.sum(of["distractor"], 0), abs=0.1
    )


def test_without_carriers_on_and_off_give_the_same():
    toy = planted_heads(carriers=0, decoys=3, distractors=1, pairs=4, seed=5)
    model, _ = loaded(toy)
    word = toy.pairs[0][0].split()[1]
    logits = [
        model.last_logits([f"<bos> {word} lamp {status} ; answer:"])[0] for status in ("on", "off")
    ]
    yes, no = toy.vocabulary.index("yes"), toy.vocabulary.index("no")
    difference = [float(row[yes] - row[no]) for row in logits]
    assert difference[0] == pytest.approx(difference[1], abs=0.05)


def test_places_are_drawn_and_too_many_heads_refused():
    places = {
        frozenset(planted_heads(carriers=1, decoys=0, distractors=0, pairs=1, seed=seed).roles)
        for seed in range(12)
    }
    assert len(places) > 4
    with pytest.raises(InterpError, match="13 planted heads"):
        planted_heads(carriers=9, decoys=2, distractors=2)
    with pytest.raises(InterpError, match="carriers"):
        planted_heads(carriers=-1, decoys=0, distractors=0)
