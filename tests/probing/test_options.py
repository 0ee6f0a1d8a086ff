"""The keywords that functions of probing share: they are read, refused and honoured alike."""

import inspect
from dataclasses import fields

import pytest

import interp
from interp.core.errors import InterpError
from interp.engine.stopping import Cancelled
from interp.models.loading import wrap
from interp.probing.training import FitKeywords, FitOptions, Optimiser
from tests.families import tiny

ROWS = [(i, i + 1, i + 2) for i in range(5, 45)]
LABELS = [0, 1] * 20
CALLS = {
    "logit_lens": lambda m, **run: interp.logit_lens(m, ROWS, k=3, **run),
    "read_lens": lambda m, **run: interp.probing.read_lens(
        m, ROWS, interp.probing.identity_lens(m, [0, 1, 2]), k=3, **run
    ),
    "lens_prediction": lambda m, **run: interp.probing.lens_prediction(
        m, ROWS, interp.probing.identity_lens(m, [0, 1, 2]), skip=1, **run
    ),
    "compare_activations": lambda m, **run: interp.probing.compare_activations(m, m, ROWS, **run),
    "probe_model": lambda m, **run: interp.probe_model(
        m, ROWS, "last", LABELS, sites=["z", "mlp_out"], shuffles=1, **run
    ),
}


@pytest.fixture(scope="module")
def model():
    return wrap(tiny("llama"), name="options")


def test_keywords_are_the_fields_of_the_options():
    listed = {name: kind.__forward_arg__ for name, kind in FitKeywords.__annotations__.items()}
    assert listed == {one.name: one.type for one in fields(FitOptions)}


@pytest.mark.parametrize("name", CALLS)
def test_an_unknown_keyword_is_refused_with_the_names_that_exist(name, model):
    message = rf"{name}\(\): .*'budget' \(did you mean 'budget_gb'\?\); it takes .*budget_gb"
    with pytest.raises(TypeError, match=message):
        CALLS[name](model, budget=1)
    function = getattr(interp.probing, name)
    assert len(inspect.signature(function).parameters) <= 12


@pytest.mark.parametrize("name", CALLS)
def test_a_cancelled_run_stops_within_a_batch(name, model):
    asked = []

    def cancelled():
        asked.append(len(asked))
        return len(asked) > 2

    with pytest.raises(Cancelled):
        CALLS[name](model, cancelled=cancelled)
    assert len(asked) == 3
    assert CALLS[name](model)  # the model is left without hooks


@pytest.mark.parametrize("name", CALLS)
def test_progress_ends_at_its_total(name, model):
    seen = []
    CALLS[name](model, progress=lambda done, total: seen.append((done, total)))
    assert seen
    assert seen[-1][0] == seen[-1][1] == len(seen)


@pytest.mark.parametrize(
    ("kind", "steps"), [({"kind": "logistic"}, 3), ({"kind": "softmax"}, 40)], ids=str
)
def test_training_reports_and_stops(kind, steps, model):
    acts = interp.run_with_cache(model, ROWS, sites="mlp_out", positions="last")
    X = acts.values[0, "mlp_out"].expand(3, -1, -1)
    if "softmax" in kind.values():
        kind = {**kind, "optimiser": Optimiser(steps=40)}
    seen = []

    def train(**run):
        return interp.probing.train_probes(X, LABELS, shuffles=1, **kind, **run)

    train(progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i + 1, steps) for i in range(steps)]
    with pytest.raises(Cancelled):
        train(cancelled=lambda: True)
    with pytest.raises(InterpError, match="progress of train_probes"):
        train(progress=3)
