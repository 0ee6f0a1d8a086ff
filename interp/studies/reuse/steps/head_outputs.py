"""What the heads that write to the logits read at the last token, and which logits they change."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import starmap

import torch
from torch import Tensor

from interp.core.components import Component
from interp.core.statistics import mean_estimate
from interp.runs.capture import run_with_cache
from interp.studies.reuse.settings import Context
from interp.studies.reuse.steps.circuits import heads_of
from interp.studies.reuse.tasks import Entry
from interp.studies.steps import Result, plain


def writes(context: Context, entry: Entry, circuit: Result) -> Result:
    """What every head of the movers' stage reads and writes on clean prompts, at the last token.

        token(x) = (W_U[x] - mean W_U) . N(z_h W_O),   x the answer or the wrong answers' mean

    N is the final norm at the run's own scale, so this is the logit that the head itself adds to x,
    relative to the mean of the vocabulary; positive raises it. self: attention to the last token
    itself; first: to the first token; 0 to 1.

    A label (`interp.studies.reuse.steps.attention_labels`) says where a head looks; this says what
    it writes: a head can support the answer by lowering the wrong one. Heads followed by a norm of
    the attention output are left out, because their output is no summand of the stream.
    """
    model, task = context.model_of(entry), context.task(entry)
    encoded = task.encode(model)
    decoder = model.require_decoder("what heads write")
    heads = [Component.parse(head) for head in heads_of(circuit, "movers")]
    heads = [head for head in heads if decoder.blocks[head.layer].ln1_post is None]
    if not heads:
        return {}
    layers = sorted({head.layer for head in heads})
    seen = run_with_cache(
        model, encoded.clean, sites=["z", "pattern"], layers=layers, positions="last"
    )
    last = model.n_layers - 1
    ends = run_with_cache(
        model, encoded.clean, sites=["resid_post"], layers=[last], positions="last"
    )[last, "resid_post"]
    own = torch.tensor([len(tokens) - 1 for tokens in encoded.clean])
    unembed = decoder.unembed.detach().cpu().double()
    unembed = unembed - unembed.mean(0)
    targets = {"answer": encoded.targets.answers, "wrong": encoded.targets.wrong}
    found: Result = {}
    for head in heads:
        weight = decoder.blocks[head.layer].attn.W_O[head.index or 0]
        z = seen[head.layer, "z"][:, head.index or 0].to(weight)
        share = decoder.ln_final.share(z @ weight, ends.to(weight)).detach().cpu().double()
        pattern = seen[head.layer, "pattern"][:, head.index or 0].cpu().double()
        found[str(head)] = {
            name: plain(mean_estimate(_logit(share, unembed, tokens)))
            for name, tokens in targets.items()
        } | {
            "self": float(pattern[torch.arange(len(own)), own].mean()),
            "first": float(pattern[:, 0].mean()),
        }
    return found


def _logit(share: Tensor, unembed: Tensor, tokens: Tensor) -> Tensor:
    """(prompts,) mean logit of each prompt's own tokens, -1 left out."""

    def one(row: Tensor, mine: Tensor) -> Tensor:
        return (unembed[mine[mine >= 0]] @ row).mean()

    return torch.stack(list(starmap(one, zip(share, tokens, strict=True))))


def in_words(found: Result, looks: Mapping[str, float], at: float) -> str:
    """What a head does, in a few words, from `writes` and its attention by relation.

    It looks at the one of answer, wrong answers, cue, last token and first token that gets most of
    its attention, if that is at least `at`. It raises or lowers the answer or the wrong answers,
    whichever it changes more.
    """
    names = {"answer": "the answer", "wrong": "the wrong answer", "cue": "the cue"}
    seen = {names[name]: value for name, value in looks.items() if name in names}
    seen |= {"the last token itself": found["self"], "the first token": found["first"]}
    where = max(seen, key=lambda name: seen[name])
    mean = {side: found[side]["mean"] for side in ("answer", "wrong")}
    side = max(mean, key=lambda name: abs(mean[name]))
    verb = "raises" if mean[side] > 0 else "lowers"
    looking = f"looks at {where}" if seen[where] >= at else "looks at nothing named"
    return f"{looking}, {verb} {names[side]}"
