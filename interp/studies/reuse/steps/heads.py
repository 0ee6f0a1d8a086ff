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
from interp.studies.formatting import place
from interp.studies.reuse.settings import ReuseContext
from interp.studies.reuse.tasks import Entry, Roles
from interp.studies.steps import Result, mean_of

RULES = {
    "mover": "attends from the last token to where the answer or a wrong answer is named, and "
    "raises the logit of the one that it attends to more",
    "suppressor": "the same, but lowers that logit",
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


def named(looks: Mapping[str, Looks], written: Result, at: float) -> dict[str, Result]:
    """What each head writes about what it attends to, if it attends to a named answer.

    side: answer or wrong, whichever gets more of the last token's attention, if that is at least
    `at`; attention: that attention; adds: the logit that the head adds to that side (`writes`);
    role: mover if the interval of `adds` is above zero, suppressor if it is below, else None.
    """
    sides = [name for name in ("answer", "wrong") if name in looks]
    over = {name: looks[name].seen(at) for name in sides}
    found: dict[str, Result] = {}
    for head, x in written.items():
        here = place(head)
        seen = {name: float(looks[name].value[here]) for name in sides if over[name][here]}
        if seen:
            side = max(seen, key=lambda name: seen[name])
            adds = x[side]
            role = "mover" if adds["low"] > 0 else "suppressor" if adds["high"] < 0 else None
            found[head] = {"side": side, "attention": seen[side], "adds": adds, "role": role}
    return found


def assign(
    looks: Mapping[str, Looks], about: Mapping[str, Result], roles: Roles, at: float
) -> dict[str, list[str]]:
    """Labels of heads by `RULES`, from attention of every head by relation and from `named`."""
    names = {"cue": roles.cue_name, "duplicate": "duplicate token", "induction": "induction"}
    found = {head: [x["role"]] for head, x in about.items() if x["role"]}
    for relation in (name for name in looks if name in names):
        for layer, index in np.argwhere(looks[relation].seen(at)):
            found.setdefault(str(Component(layer, "z", index)), []).append(names[relation])
    return found


def labels(context: ReuseContext, entry: Entry, written: Result) -> Result:
    """The labels of every head on a task, from its attention and from what it writes."""
    looks, at = attention(context, entry), context.settings.threshold
    about = named(looks, written, at)
    return {
        "labels": assign(looks, about, entry.roles, at),
        "attention": {name: one.value.round(4).tolist() for name, one in looks.items()},
        "named": about,
    }


def _columns(*places: list[int]) -> list[list[int]]:
    """One list of positions per prompt, each once."""
    return [sorted(set(group)) for group in zip(*places, strict=True)]


def writes(context: ReuseContext, entry: Entry) -> Result:
    """What every head reads and writes on a task's clean prompts, at the last token.

        token(x) = (W_U[x] - mean W_U) . N(z_h W_O),   x the answer or the wrong answers' mean

    N is the final norm at the run's own scale, so this is the logit that the head itself adds to x,
    relative to the mean of the vocabulary; positive raises it. self: attention to the last token
    itself; first: to the first token; 0 to 1.

    A head can support the answer by lowering the wrong one.
    """
    model, task = context.model_of(entry), context.task(entry)
    encoded = task.encode(model)
    decoder = model.require_decoder("what heads write")
    sites = ["z", "pattern", "resid_post"]
    seen = run_with_cache(model, encoded.clean, sites=sites, positions="last")
    ends = seen[model.n_layers - 1, "resid_post"]
    own = torch.tensor([len(tokens) - 1 for tokens in encoded.clean])
    centre = decoder.unembed.detach().double().mean(0).cpu()
    targets = {"answer": encoded.targets.answers, "wrong": encoded.targets.wrong}
    reads = {
        name: decoder.ln_final.reader(ends, mean_rows(decoder.unembed, tokens) - centre).detach()
        for name, tokens in targets.items()
    }
    found: Result = {}
    for layer, block in enumerate(decoder.blocks):
        z, pattern = seen[layer, "z"], seen[layer, "pattern"].cpu().double()
        adds = {name: block.head_values(z, read).detach() for name, read in reads.items()}
        for head in range(model.n_heads):
            found[str(Component(layer, "z", head))] = {
                name: mean_of(values[:, head]) for name, values in adds.items()
            } | {
                "self": float(pattern[torch.arange(len(own)), head, own].mean()),
                "first": float(pattern[:, head, 0].mean()),
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
