"""Probes are kept by name, found for their model alone, and listed among kept results."""

import pytest
import torch

from interp.core.errors import InterpError
from interp.core.files import cache_dir
from interp.probing.probe_files import keep_probes, kept_probes
from interp.probing.training import train_probes
from interp.results.kept import delete_result, find_result


@pytest.fixture
def probes(toy):
    generator = torch.Generator().manual_seed(0)
    labels = [i % 2 for i in range(40)]
    states = torch.randn(2, 40, 6, generator=generator) + torch.tensor(labels)[None, :, None]
    source = {"model": toy.name, "model_hash": toy.hash, "site": "resid_post"}
    return train_probes(states, labels, coordinates={"layer": (3, 7)}, source=source, shuffles=3)


def test_kept_probes_come_back_for_their_model_alone(toy, probes, smollm) -> None:
    keep_probes("topic", probes)
    found = kept_probes(toy)
    assert list(found) == ["topic"]
    assert torch.equal(found["topic"].weights, probes.weights)
    assert found["topic"].coordinates == {"layer": (3, 7)}
    assert kept_probes(smollm) == {}
    (cache_dir() / "probes" / "broken.safetensors").write_bytes(b"no")
    assert list(kept_probes(toy)) == ["topic"]


def test_they_are_listed_and_deleted(toy, probes) -> None:
    keep_probes("topic", probes)
    one = find_result("probes/topic")
    assert (one.kind, one.model, one.model_hash) == ("probes", toy.name, toy.hash)
    assert one.about == "logistic probes of resid_post, 2 layers"
    assert one.n == 40
    delete_result("probes/topic")
    assert kept_probes(toy) == {}


def test_a_name_that_is_no_file_is_refused(probes) -> None:
    with pytest.raises(InterpError, match="not a name"):
        keep_probes("../topic", probes)
