"""Where a head or neuron is most active: against all activations at once, and after a stop."""

from importlib import import_module

import numpy as np
import pytest

from interp.core.errors import InterpError
from interp.engine.stopping import Cancelled
from interp.runs.capture import run_with_cache
from interp.runs.hooks import intervene
from interp.runs.kinds import zero
from interp.runs.most_active import strongest_positions

module = import_module("interp.runs.most_active")
TEXTS = [
    tuple(int(t) for t in np.random.default_rng(i).integers(3, 97, 4 + i % 7)) for i in range(20)
]


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of three texts, the last one of two."""
    monkeypatch.setattr(module, "CHUNK", 3)


def everywhere(model, label):
    """(value, text, position) of every token, one text at a time."""
    found = []
    for number, text in enumerate(TEXTS):
        seen = run_with_cache(model, text, sites=["post", "z"])
        values = seen[label][0].double()
        if "H" in label:
            layer, head = int(label[1]), int(label[3])
            values = (values @ model.decoder.blocks[layer].attn.W_O[head].double()).norm(dim=-1)
        found += [(value, number, at) for at, value in enumerate(values.tolist())]
    return found


@pytest.mark.parametrize("label", ["L1H3", "L2N5"])
def test_every_family_against_all_tokens_at_once(family, label, small_chunks):
    found = strongest_positions(family, label, TEXTS, k=7, context=2, cache=False)
    expected = sorted(everywhere(family, label), reverse=True)
    values = np.array([value for value, *_ in expected])
    assert found.n_tokens == len(values) == sum(map(len, TEXTS))
    assert found.n_texts == 20
    assert found.mean == pytest.approx(values.mean(), abs=1e-5)
    assert found.sd == pytest.approx(values.std(), abs=1e-5)
    for one, (value, text, position) in zip(found.positions, expected[:7], strict=True):
        assert (one.text, one.position) == (text, position)
        assert one.value == pytest.approx(value, abs=1e-5)
        row = TEXTS[text]
        shown = "".join(family.strings(row[max(0, position - 2) : position + 3]))
        assert one.before + one.token + one.after == shown
        assert one.token == family.strings([row[position]])[0]
        if "H" in label:
            pattern = run_with_cache(family, row, sites=["pattern"])[1, "pattern"][0, position, 3]
            assert one.attention == pytest.approx(float(pattern.max()), abs=1e-5)
            assert one.key == family.strings([row[int(pattern.argmax())]])[0]


def test_the_most_negative(family_models, small_chunks):
    model = family_models["llama"]
    found = strongest_positions(model, "L0N4", TEXTS, k=3, negative=True)
    expected = sorted(everywhere(model, "L0N4"))[:3]
    assert [one.value for one in found.positions] == pytest.approx([v for v, *_ in expected])
    assert [one.text for one in found.positions] == [text for _, text, _ in expected]


def test_fewer_tokens_than_asked_for(family_models):
    found = strongest_positions(family_models["llama"], "L0N4", [(5, 6)], k=9)
    assert len(found.positions) == 2


def test_a_stopped_call_continues(family_models, small_chunks, monkeypatch):
    model, ran = family_models["llama"], []
    run = module._measured

    def counted(model, part, rows):
        ran.append(len(rows))
        return run(model, part, rows)

    monkeypatch.setattr(module, "_measured", counted)
    whole = strongest_positions(model, "L1H1", TEXTS, cache=False)
    ran.clear()
    with pytest.raises(Cancelled):
        strongest_positions(model, "L1H1", TEXTS, cancelled=lambda: len(ran) > 2)
    assert ran == [3, 3, 3]
    ran.clear()
    again = strongest_positions(model, "L1H1", TEXTS)
    assert again == whole
    assert sum(ran) == len(TEXTS) - 6
    ran.clear()
    longer = strongest_positions(model, "L1H1", iter([*TEXTS, (5, 6, 7)]))
    assert ran == [3]  # the last part, which has one more text
    assert longer.n_texts == 21
    with intervene(model, [zero("L1H1")]):
        assert strongest_positions(model, "L1H1", TEXTS).positions[0].value == 0
    assert strongest_positions(model, "L1H1", TEXTS) == whole


def test_memory_does_not_grow_with_the_corpus(family_models, small_chunks):
    """At no time are more texts alive than one chunk has."""
    alive, most = [0], [0]

    class Text(tuple):
        def __del__(self):
            alive[0] -= 1

    def stream():
        for i in range(60):
            alive[0] += 1
            most[0] = max(most[0], alive[0])
            yield Text((5, 6, 7 + i))

    strongest_positions(family_models["llama"], "L0N4", stream(), cache=False)
    assert most[0] <= 6


def test_results_and_refusals(family_models, toy):
    found = strongest_positions(toy, "L1H2", ["<bos> a b c a"], k=2)
    best = found.positions[0]
    assert (best.token, best.key) == ("a", "b")
    assert "L1H2" in repr(found)
    assert len(found.to_dataframe()) == 2
    assert "<table" in found._repr_html_()
    model = family_models["llama"]
    for label, options in (
        ("L0H0", {"negative": True}),
        ("L9H0", {}),
        ("L0.mlp_out", {}),
        ("L0N1", {"k": 0}),
        ("L0N1", {"context": -1}),
    ):
        with pytest.raises(InterpError):
            strongest_positions(model, label, TEXTS, **options)
    with pytest.raises(InterpError, match="no texts"):
        strongest_positions(model, "L0N1", [])
