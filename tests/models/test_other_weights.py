"""What was made with some weights is refused when the model has others, because of a delta."""

from itertools import permutations

import pytest
import torch

import interp
from interp.core.errors import InterpError
from interp.models.weight_delta import LowRank, WeightDelta
from interp.overview.change_trial import try_changes
from interp.overview.two_sets import contrast
from interp.runs.ablation_sets import AblatedSets
from interp.runs.changed_runs import ChangedRuns
from interp.runs.kinds import zero
from interp.runs.next_tokens import ablate
from interp.runs.stored_runs import keep_runs

PROMPT = (3, 4, 5, 6, 7)
MANY = [" ".join(letters) for letters in permutations("abcd")]


@pytest.fixture(scope="module")
def changed(toy):
    """A model, and a change of it."""
    model = toy
    part = LowRank(left=torch.ones(model.d_model, 1), right=torch.ones(1, model.d_mlp), scale=0.01)
    low = {"model.layers.1.mlp.down_proj.weight": (part,)}
    return model, WeightDelta(name="change", base=model.hash, low_rank=low)


MAKERS = {
    "kept runs": lambda model: keep_runs(model, [PROMPT], last=1, whole=True),
    "edited runs": lambda model: keep_runs(model, [PROMPT], last=1, whole=True),
    "a look": lambda model: interp.look(model, PROMPT, answer=4, wrong=5),
    "sets": lambda model: AblatedSets(model=model, prompts=[PROMPT], tokens=(4, 5), where=1),
    "a trial": lambda model: try_changes(model, PROMPT, ["L0H1, zero"], answer=4, wrong=5),
    "a contrast": lambda model: contrast(model, MANY[:12], MANY[12:]),
}
USES = {
    "kept runs": lambda model, made: [
        made.logits(),
        made.read([(1, "z")]),
        ablate(model, [PROMPT], [zero("L0H1")], tokens=[4, 5], runs=made),
        ChangedRuns(runs=made, change=zero("L0H1"), where="all").logits(),
    ],
    "edited runs": lambda model, made: made.edited_logits([(*PROMPT[:-1], PROMPT[-1] - 1)]),
    "a look": lambda model, made: made.attribution(position=-1),
    "sets": lambda model, made: made([["L0H1"]]),
    "a trial": lambda model, made: made.tokens,
    "a contrast": lambda model, made: made.projections(1, ["a b"]),
}


@pytest.mark.parametrize("what", list(MAKERS))
@pytest.mark.parametrize("inside", [False, True])
def test_what_was_made_with_other_weights_is_refused(changed, what, inside):
    model, delta = changed
    if inside:
        with delta.applied(model):
            made = MAKERS[what](model)
            if what != "a trial":
                USES[what](model, made)
        with pytest.raises(InterpError, match="made with weights"):
            USES[what](model, made)
    else:
        made = MAKERS[what](model)
        with delta.applied(model), pytest.raises(InterpError, match="made with weights"):
            USES[what](model, made)
        USES[what](model, made)
