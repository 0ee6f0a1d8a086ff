"""Labels of heads by where they attend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from interp.heads.attention import AttentionTo, attention_to
from interp.studies.reuse.settings import Context
from interp.studies.reuse.steps.circuits import label
from interp.studies.reuse.steps.overlap import clear
from interp.studies.reuse.tasks import Entry, Roles
from interp.studies.steps import Result

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


def attention(context: Context, entry: Entry) -> dict[str, Looks]:
    """How each head attends, for every relation the task's prompts have.

    answer, wrong and cue from the last token; duplicate and induction from the cue.
    """
    model, task, roles = context.model_of(entry), context.task(entry), entry.roles
    encoded = task.encode(model)
    last = [len(tokens) - 1 for tokens in encoded.clean]

    def looks(queries: list[int], keys: list[list[int]]) -> Looks:
        found: AttentionTo = attention_to(
            model, encoded.clean, queries, keys, seed=context.settings.seed
        )
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


def labels(context: Context, entry: Entry, circuit: Result) -> Result:
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
