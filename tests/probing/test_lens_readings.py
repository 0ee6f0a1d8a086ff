"""Readings of a fitted lens and its controls, against the logit lens and slow loops."""

from dataclasses import replace

import pytest
import torch

import interp
from interp.core.errors import InterpError
from interp.probing.lens_maps import LensMaps, identity_lens, lens_controls
from interp.probing.lens_readings import read_lens
from interp.runs.capture import run_with_cache
from tests.words import WORDS, word_model

TEXTS = ["waa wab wac", "wae waf", "wba wbb wbc wbd"]


@pytest.fixture(scope="module")
def words():
    return word_model()


@pytest.fixture(scope="module")
def maps(words):
    """Random maps with offsets and halves."""
    drawn = torch.Generator().manual_seed(0)
    halves = torch.randn(2, 2, 32, 32, generator=drawn)
    offsets = torch.randn(2, 2, 32, generator=drawn)
    return LensMaps(
        kind="tuned",
        model=words.name,
        model_hash=words.hash,
        layers=(0, 1),
        matrices=halves.mean(0),
        offsets=offsets.mean(0),
        halves=halves,
        half_offsets=offsets,
        n=(5, 5),
    )


def test_equals_a_loop(words, maps):
    """Every reading, by applying its map to one state at a time."""
    watched = [f" {WORDS[3]}", 9]
    found = read_lens(words, TEXTS, maps, words=watched, k=4)
    assert [*found.readings] == [
        "tuned", "identity", "shuffled layers", "half 1", "half 2"
    ]  # fmt: skip
    lenses = {"tuned": maps, **lens_controls(maps, words)}
    for name, lens in found.readings.items():
        used = lenses[name]
        for j, layer in enumerate((0, 1)):
            rows = []
            for text in TEXTS:
                state = run_with_cache(words, [text], sites="resid_post", layers=[layer])
                h = state[layer, "resid_post"][0, -1].double()
                if name != "identity":
                    place = used.layers.index(layer)
                    h = used.matrices[place].double() @ h + used.offsets[place].double()
                rows.append(words.decoder.logits(words.decoder.ln_final(h[None]))[0].softmax(-1))
            slow = torch.stack(rows)
            id_ = words.single_token(watched[0])
            torch.testing.assert_close(lens.word_probability[0, j, :, 0], slow[:, id_])
            torch.testing.assert_close(lens.word_probability[0, j, :, 1], slow[:, 9])
            torch.testing.assert_close(lens.top_mean[0, j, 0], slow.mean(0).topk(4).values)


def test_the_identity_is_the_logit_lens(family):
    """The lens of identities is `logit_lens`."""
    rows = [(5, 6, 7, 8), (9, 10, 11)]
    plain = interp.logit_lens(family, rows, layers=[0, 2], k=5, words=[7])
    found = read_lens(family, rows, identity_lens(family, [2, 0]), k=5, words=[7])
    assert found.lens.layers == plain.layers == (0, 2)
    assert found.controls == {}
    torch.testing.assert_close(found.lens.top_mean, plain.top_mean)
    torch.testing.assert_close(found.lens.word_probability, plain.word_probability)


def test_one_prompt_is_read_at_every_token(words, maps):
    found = read_lens(words, "waa wab wac", maps, k=3)
    assert found.lens.prompt == words.tokenize("waa wab wac").strings
    assert len(found.to_dataframe()) == 5 * 2 * len(found.lens.prompt) * 3
    assert {"lens", "layer", "text"} <= {*found.to_dataframe()}
    assert found.plot().data
    assert repr(found).startswith(
        "LensReading(tuned beside identity, shuffled layers, half 1, half 2: Lens("
    )


def test_words_with_bands(words, maps):
    found = read_lens(words, TEXTS, maps, words=" waa", groups=["a", "a", "b"], k=3)
    table = found.words_to_dataframe()
    assert len(table) == 5 * 2 * 2
    a, b = found.between_halves(" waa", 1, group="a")
    assert (a.n, b.n) == (2, 2)
    assert a.mean != b.mean
    figure = found.plot(word=" waa", group="a")
    names = {trace.name for trace in figure.data}
    assert {"tuned", "identity", "half 1"} <= names
    alone = read_lens(words, TEXTS, maps.half(0), words=" waa", k=3)
    assert alone.between_halves(" waa", 1) is None
    bare = read_lens(words, TEXTS, maps, k=3, controls=False)
    assert bare.controls == {}


def test_shuffled_layers_have_another_layers_map(maps):
    for seed in range(5):
        shuffled = maps.shuffled(seed=seed)
        assert torch.equal(shuffled.matrices, maps.matrices.flip(0))
        assert torch.equal(shuffled.offsets, maps.offsets.flip(0))


def test_a_changed_run_is_read(words, maps):
    from interp.runs.kinds import zero

    plain = read_lens(words, TEXTS, maps, k=3)
    with interp.intervene(words, [zero("L1.mlp_out")]):
        changed = read_lens(words, TEXTS, maps, k=3)
    assert torch.equal(plain.lens.top_mean[:, 0], changed.lens.top_mean[:, 0])
    assert not torch.allclose(plain.lens.top_mean[:, 1], changed.lens.top_mean[:, 1])


def test_maps_are_saved_whole(words, maps, tmp_path):
    back = LensMaps.load(maps.save(tmp_path / "lens"))
    assert torch.equal(back.halves, maps.halves)
    assert torch.equal(back.half_offsets, maps.half_offsets)
    assert (back.layers, back.n, back.kind) == (maps.layers, maps.n, maps.kind)
    bare = LensMaps.load(maps.half(1).save(tmp_path / "half"))
    assert bare.halves is None
    assert bare.note == "half 2"


def test_bad_input_is_refused(words, maps):
    with pytest.raises(InterpError, match="it was fitted on"):
        read_lens(words, TEXTS, replace(maps, model_hash="0" * 64))
    with pytest.raises(InterpError, match="fitted at layers 0, 1"):
        read_lens(words, TEXTS, maps, layers=[2])
    with pytest.raises(InterpError, match="one layer"):
        identity_lens(words, [1]).shuffled()
    with pytest.raises(InterpError, match="mean alone"):
        maps.half(0).half(1)
    with pytest.raises(InterpError, match="half"):
        maps.half(2)
    with pytest.raises(InterpError, match="one square matrix"):
        replace(maps, layers=(0, 1, 2))
    with pytest.raises(InterpError, match="not finite"):
        replace(maps, matrices=maps.matrices * torch.nan)
    found = read_lens(words, TEXTS, maps, k=3)
    with pytest.raises(InterpError, match="watched word"):
        found.plot(word=" waa")
