"""The matrix against vectors put in one by one, its nulls, and a model that knows no task."""

import json

import numpy as np
import pytest
import torch

from interp.core.errors import InterpError
from interp.steering.task_vectors import answered, task_vector
from interp.steering.vector_transfer import VectorTest, transfer_matrix
from interp.tasks.word_pairs import WordTask
from tests.words import OTHER, TASK, word_model

SOURCES = ("examples", "instruction", "both", "bare", "heads")
HEADS = ["L0H1", "L1H3"]


@pytest.fixture(scope="module")
def model():
    return word_model()


@pytest.fixture(scope="module")
def found(model):
    return transfer_matrix(model, [TASK, OTHER], SOURCES, heads=HEADS, draws=5, examples=3, seed=1)


def test_vectors_are_of_one_half_and_queries_of_the_other(model, found):
    first, _ = TASK.split(seed=1)
    again = task_vector(model, first, spec="both", examples=3, seed=1)
    assert torch.equal(found.vectors[2].vector, again.vector)
    assert found.vectors[2].layer == again.layer
    assert [one.spec for one in found.vectors] == [*SOURCES, *SOURCES]
    for column, task in enumerate((TASK, OTHER)):
        _, second = task.split(seed=1)
        hits, _ = answered(model, second.prompts(), [one.change() for one in found.vectors])
        assert np.array_equal(found.hits[column], hits[1:])
        assert np.array_equal(found.prompted[column]["none"], hits[0])
    assert found.accuracy.shape == (10, 2)
    assert found.to_dataframe().shape == (10, 5)


def test_every_vector_stands_beside_its_nulls(found):
    tests = {(test.name, test.spec): test for test in found.tests}
    assert len(tests) == 10
    for (task, spec), test in tests.items():
        column = ("tiny", "other").index(task)
        row = SOURCES.index(spec)
        assert np.array_equal(test.hits, found.hits[column][row + 5 * column])
        assert np.array_equal(test.others, found.hits[column][row + 5 * (1 - column)])
        assert (test.shuffled is None) == (spec not in ("examples", "heads"))
        assert (test.random_heads is None) == (spec != "heads")
        assert test.random.shape == (5, 6)
        assert {"no vector", "other tasks", "random vector"} <= {*test.gains}
        assert test.nulls["random vector"].draws == 5
    pooled = found.pooled("heads")
    assert pooled.accuracy.n == 12
    assert pooled.random_heads.shape == (5, 12)
    assert pooled.gains["other tasks"].mean == pytest.approx(
        np.mean([tests[name, "heads"].gains["other tasks"].mean for name in ("tiny", "other")])
    )


def test_gains_and_ranks_by_hand():
    test = VectorTest(
        name="t", spec="examples", layers=(1,), heads=((),), hits=np.array([1.0, 1, 1, 0]),
        plain=np.zeros(4), others=np.array([0.5, 0, 0, 0.5]), shuffled=np.array([1.0, 0, 0, 0]),
        random=np.array([[0.0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]), random_heads=None,
    )  # fmt: skip
    assert test.accuracy.mean == 0.75
    assert test.plain_accuracy.mean == 0
    gains = {name: one.mean for name, one in test.gains.items()}
    assert gains == pytest.approx(
        {"no vector": 0.75, "other tasks": 0.5, "permuted answers": 0.5, "random vector": 1 / 3}
    )
    assert all(one.low <= one.mean <= one.high for one in test.gains.values())
    assert test.nulls["random vector"].share == 0.5  # one of three is stronger
    assert "beyond no vector +0.75" in repr(test)


def test_without_attention_no_vector_gains_anything():
    """Nothing may be found: every prompt has the same last state, whatever it shows."""
    still = word_model(heads=())
    tasks = [TASK, OTHER]
    found = transfer_matrix(still, tasks, ("examples", "instruction"), layer=1, draws=3, examples=3)
    for spec in ("examples", "instruction"):
        test = found.pooled(spec)
        for name, gain in test.gains.items():
            if name != "random vector":
                assert (gain.mean, gain.low, gain.high) == (0, 0, 0), name


def test_a_task_alone_and_values_for_a_file(model):
    found = transfer_matrix(model, TASK, "examples", layer=2, draws=2, examples=2)
    assert found.tests[0].others is None
    assert "other tasks" not in found.tests[0].gains
    told = json.loads(json.dumps(found.to_json()))
    assert told["tests"][0]["task"] == "tiny"
    assert told["prompted"]["all"]["examples"]["n"] == 6
    assert "TransferMatrix(" in repr(found)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tasks": []},
        {"tasks": [TASK, TASK]},
        {"specs": "told"},
        {"specs": []},
        {"specs": ["both", "both"]},
        {"draws": 0},
        {"examples": 6},
        {"layer": 3},
        {"tasks": [WordTask(name="one", instruction="waa.", pairs=TASK.pairs[:1])]},
    ],
)
def test_what_cannot_be_measured_is_refused(model, wrong):
    with pytest.raises(InterpError):
        transfer_matrix(model, **({"tasks": [TASK], "specs": "examples", "draws": 1} | wrong))


def test_unknown_names_are_refused(found):
    with pytest.raises(InterpError):
        found.pooled("told")
    with pytest.raises(InterpError):
        found.prompted_accuracy("capital")
