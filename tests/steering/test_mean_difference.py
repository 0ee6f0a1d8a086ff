"""A difference of means is a direction, and a change that adds or removes it."""

import pytest
import torch

import interp
from interp.core.errors import InterpError
from interp.runs.capture import run_with_cache
from interp.runs.hooks import intervene
from interp.runs.kinds import add, project_out

FIRST, SECOND = [(5, 6, 7), (8, 9, 10)], [(11, 12), (13, 14, 15)]


def test_it_is_the_difference_of_the_means_at_the_last_token(family):
    found = interp.mean_difference(family, FIRST, SECOND, layer=1)
    sides = [
        run_with_cache(family, rows, sites="resid_post", layers=[1], positions="last")
        for rows in (FIRST, SECOND)
    ]
    means = [side[1, "resid_post"].double().mean(0) for side in sides]
    torch.testing.assert_close(found.vector, means[0] - means[1], atol=1e-5, rtol=1e-5)
    assert (found.kind, found.n, found.layer) == ("contrast", (2, 2), 1)


def test_a_direction_is_added_and_removed_at_its_own_site(family_models):
    model = family_models["llama"]
    found = interp.mean_difference(model, FIRST, SECOND, layer=1, site="resid_pre")
    label, vector = "L1.resid_pre", found.vector.float()
    for short, long in (
        (add(found, coefficient=2), add(label, vector, coefficient=2)),
        (project_out(found), project_out(label, vector)),
    ):
        logits = []
        for change in (short, long):
            with intervene(model, change):
                logits.append(model.last_logits(FIRST))
        torch.testing.assert_close(*logits)
        texts = [interp.generate(model, FIRST, 4, change=change) for change in (short, long)]
        assert texts[0] == texts[1]
    with pytest.raises(InterpError, match="give one, or a Direction alone"):
        add(label)
    with pytest.raises(InterpError, match="a contrast direction"):
        interp.mean_difference(model, [], SECOND, layer=1)
