"""What heads do: labels by where they attend, what movers read, and which logits they change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from interp.core.components import Component
from interp.heads.attention import attention_to
from interp.heads.direct_attribution import mean_rows
from interp.runs.capture import run_with_cache
from interp.studies.reuse.settings import ReuseContext
from interp.studies.reuse.steps.circuits import clear, heads_of, label
from interp.studies.reuse.tasks import Entry, Roles
from interp.studies.steps import Result, mean_of

RULES = {
    "mover": "attends from the last token to where the answer is named; its direct effect on the "
    "logits is positive",
    "negative mover": "the same, with a negative direct effect",
    "inhibition": "attends from the last token to the repeated name",
    "content gatherer": "attends from the last token to the object asked about",
    "duplicate token": "attends from the cue (repeated name, object) to its first mention",
    "induction": "attends from the cue to the token after its first mention",
}


@dataclass(frozen=True, kw_only=True)
class Looks:
    """Attention of every head for one relation: (layer, head) arrays.

    excess: attention minus that to as many other positions at like distances; nan if unknown.
    excess_low: the lower end of its 95 % interval.
    """

    value: np.ndarray
    excess: np.ndarray
    excess_low: np.ndarray

    def seen(self, threshold: float) -> np.ndarray:
        """Heads over the threshold whose excess over other positions is significant (95 %)."""
        return (self.value >= threshold) & ((self.excess_low > 0) | np.isnan(self.excess))


def attention(context: ReuseContext, entry: Entry) -> dict[str, Looks]:
    """How each head attends, for every relation the task's prompts have.

    answer, wrong and cue from the last token; duplicate and induction from the cue.
    """
    model, task, roles = context.model_of(entry), context.task(entry), entry.roles
    encoded = task.encode(model)
    last = [len(tokens) - 1 for tokens in encoded.clean]

    def looks(queries: list[int], keys: list[list[int]]) -> Looks:
        found = attention_to(model, encoded.clean, queries, keys, seed=context.settings.seed)
        low, _ = found.excess_interval()
        return Looks(value=found.values, excess=found.excess, excess_low=low)

    found = {"answer": looks(last, _columns(encoded.positions(roles.answer)))}
    if roles.wrong:
        found["wrong"] = looks(last, _columns(*map(encoded.positions, roles.wrong)))
    if roles.cue is not None and roles.earlier is not None:
        cue, first = encoded.positions(roles.cue), encoded.positions(roles.earlier)
        found["cue"] = looks(last, _columns(cue))
        found["duplicate"] = looks(cue, _columns(first))
        found["induction"] = looks(cue, _columns([place + 1 for place in first]))
    return found


def assign(
    looks: Mapping[str, Looks], direct: np.ndarray, roles: Roles, at: float
) -> dict[int, list[str]]:
    """Labels of heads (numbered layer * heads + head) by `RULES`.

    Args:
        looks: attention of every head, by relation.
        direct: (prompts, layer * head) direct effects on the logits.
        roles: the task's.
        at: the threshold of attention.
    """
    writes, effect = clear(direct), direct.mean(0)
    seen = {name: one.seen(at).ravel() for name, one in looks.items()}
    found = {
        "mover": seen["answer"] & writes & (effect > 0),
        "negative mover": seen["answer"] & writes & (effect < 0),
    }
    names = {"cue": roles.cue_name, "duplicate": "duplicate token", "induction": "induction"}
    found |= {names[name]: heads for name, heads in seen.items() if name in names}
    every: dict[int, list[str]] = {}
    for name, heads in found.items():
        for head in np.flatnonzero(heads):
            every.setdefault(int(head), []).append(name)
    return every


def labels(context: ReuseContext, entry: Entry, circuit: Result) -> Result:
    """The labels of every head of the model on a task, and the attention behind them."""
    model, direct = context.model_of(entry), np.array(circuit["stages"]["movers"]["effects"])
    looks = attention(context, entry)
    found = assign(looks, direct, entry.roles, context.settings.threshold)
    return {
        "labels": {label(head, model.n_heads): names for head, names in sorted(found.items())},
        "attention": {name: one.value.round(4).tolist() for name, one in looks.items()},
    }


def _columns(*places: list[int]) -> list[list[int]]:
    """One list of positions per prompt, each once."""
    return [sorted(set(group)) for group in zip(*places, strict=True)]


def writes(context: ReuseContext, entry: Entry, circuit: Result) -> Result:
    """What every head of the movers' stage reads and writes on clean prompts, at the last token.

        token(x) = (W_U[x] - mean W_U) . N(z_h W_O),   x the answer or the wrong answers' mean

    N is the final norm at the run's own scale, so this is the logit that the head itself adds to x,
    relative to the mean of the vocabulary; positive raises it. self: attention to the last token
    itself; first: to the first token; 0 to 1.

    A label (`labels`) says where a head looks; this says what it writes: a head can support the
    answer by lowering the wrong one.
    """
    model, task = context.model_of(entry), context.task(entry)
    encoded = task.encode(model)
    decoder = model.require_decoder("what heads write")
    heads = [Component.parse(head) for head in heads_of(circuit, "movers")]
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
    centre = decoder.unembed.detach().double().mean(0).cpu()
    targets = {"answer": encoded.targets.answers, "wrong": encoded.targets.wrong}
    reads = {
        name: decoder.ln_final.reader(ends, mean_rows(decoder.unembed, tokens) - centre).detach()
        for name, tokens in targets.items()
    }
    found: Result = {}
    for head in heads:
        block, z = decoder.blocks[head.layer], seen[head.layer, "z"]
        pattern = seen[head.layer, "pattern"][:, head.index or 0].cpu().double()
        found[str(head)] = {
            name: mean_of(block.head_values(z, read).detach()[:, head.index or 0])
            for name, read in reads.items()
        } | {
            "self": float(pattern[torch.arange(len(own)), own].mean()),
            "first": float(pattern[:, 0].mean()),
        }
    return found


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
