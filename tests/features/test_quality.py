"""The card of a dictionary equals slow loops, and knows a perfect and an empty dictionary."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from interp.core.errors import InterpError
from interp.features.quality import dictionary_card
from interp.runs.capture import run_with_cache
from tests.features.made import linear_dictionary, random_dictionary

TEXTS = [(5, 6, 7, 8, 40), (9, 10, 11), (12, 13, 14, 60, 61, 62)]


def losses(model, site, values, skip):
    """(texts,) mean loss with the site replaced, one text at a time."""
    found = []
    for text, value in zip(TEXTS, values, strict=True):

        def hook(old, batch, value=value):
            new = old.clone()
            new[0, skip:] = value[skip:].view_as(new[0, skip:])
            return new

        with torch.no_grad():
            hooks = {} if value is None else {(1, site): [hook]}
            ((_, logits),) = list(model.run([text], hooks=hooks))
        log = logits[0].log_softmax(-1)
        found.append(-np.mean([float(log[i, text[i + 1]]) for i in range(len(text) - 1)]))
    return np.array(found)


@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize("place", [("resid_post", None), ("mlp_in", "mlp_out"), ("z", None)])
def test_a_card_equals_loops(family_models, place, skip):
    model = family_models["llama"]
    dictionary = random_dictionary(model, *place, kind="topk", k=3)
    source = "resid_mid" if place[0] == "mlp_in" else place[0]
    read = [run_with_cache(model, t, sites=source)[1, source][0] for t in TEXTS]
    read = [dictionary.what_is_read(model.decoder, x) for x in read]
    true = [
        run_with_cache(model, t, sites=dictionary.written)[1, dictionary.written][0] for t in TEXTS
    ]
    true = [y.flatten(1) for y in true]
    features = [dictionary.encode(x) for x in read]
    made = [dictionary.decode(f) for f in features]
    every = torch.cat([y[skip:] for y in true])
    mean = every.mean(0)
    left = torch.cat([(y - z)[skip:] for y, z in zip(true, made, strict=True)]).pow(2).sum()
    active = torch.cat([f[skip:] for f in features]) != 0
    card = dictionary_card(model, TEXTS, dictionary, skip=skip)
    assert card.unexplained.mean == pytest.approx(
        float(left / (every - mean).pow(2).sum()), rel=1e-4
    )
    assert card.l0.mean == pytest.approx(float(active.sum(1).float().mean()))
    assert card.dead == int((~active.any(0)).sum()) > 0
    assert (card.tokens, card.texts, card.size) == (14 - 3 * skip, 3, 40)
    plain = losses(model, dictionary.written, [None] * 3, skip)
    assert card.loss.mean == pytest.approx(plain.mean(), abs=1e-4)
    for estimate, values in (
        (card.loss_added, made),
        (card.loss_added_by_mean, [mean.expand_as(y) for y in true]),
    ):
        added = losses(model, dictionary.written, values, skip) - plain
        assert np.abs(added).max() > 1e-3
        assert estimate.mean == pytest.approx(added.mean(), abs=1e-4)


def test_a_perfect_and_an_empty_dictionary(doubles):
    model = doubles("llama")
    rows = torch.linalg.qr(torch.randn(32, 32, dtype=torch.float64))[0]
    card = dictionary_card(model, TEXTS, linear_dictionary(model, rows, 1))
    assert card.unexplained.mean == pytest.approx(0, abs=1e-9)
    assert card.loss_added.mean == pytest.approx(0, abs=1e-6)
    assert (card.dead, card.l0.mean) == (0, 32)
    true = torch.cat(
        [run_with_cache(model, t, sites="resid_post")[1, "resid_post"][0][1:] for t in TEXTS]
    )
    silent = replace(
        random_dictionary(model),
        b_enc=torch.full((40,), -1e6, dtype=torch.float64),
        b_dec=true.mean(0),
    )
    card = dictionary_card(model, TEXTS, silent)
    assert card.unexplained.mean == pytest.approx(1)
    assert (card.dead, card.l0.mean) == (40, 0)
    assert card.loss_added.mean == pytest.approx(card.loss_added_by_mean.mean)


def test_too_short_a_text_is_refused(family_models):
    model = family_models["llama"]
    dictionary = random_dictionary(model)
    for skip, match in ((5, "leaves out 5"), (-1, "skip")):
        with pytest.raises(InterpError, match=match):
            dictionary_card(model, TEXTS, dictionary, skip=skip)


def test_a_card_is_kept_with_its_dictionary(family_models, tmp_path):
    model = family_models["llama"]
    dictionary = random_dictionary(model)
    card = dictionary_card(model, TEXTS, dictionary)
    path = replace(dictionary, card=card).save(tmp_path / "one")
    assert type(dictionary).load(path).card == card
    assert str(card) in repr(type(dictionary).load(path))
