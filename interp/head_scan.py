"""Which heads are necessary for a refusal: switched off one at a time, in groups, in texts.

Ships (any effect on the next token), the drop of the refusal score, Sahara's groups, and how often
a judged text flips.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from interp.ablation import make_ablation, random_like
from interp.capture import run_with_cache
from interp.components import Component, within
from interp.engine.forward import Baseline, Runner
from interp.engine.restart import baseline, final_hidden
from interp.engine.sweep import LogitsOf, Progress
from interp.errors import InterpError, unknown
from interp.generation import generate
from interp.inputs import listed, reads_arguments, texts_of
from interp.interventions import intervene
from interp.judging import LEAST_TOKENS, Judge, Judged, flip_rate, judge_replies, replies_of
from interp.metrics import Estimate
from interp.models.language_model import HOOKED, LanguageModel
from interp.nulls import Null, null_of
from interp.prompts import Prompt, Task
from interp.scores import Scores
from interp.switching import (
    Change,
    SwitchOff,
    both_sides,
    changed_runs,
    head_scores,
)


@dataclass(frozen=True, kw_only=True)
class HeadScan:
    """Every head switched off, one at a time.

    Attributes:
        mode: how.
        necessity: metric on clean prompts less that with the head off: positive, the head is
            needed. With the metric log_odds, the drop of the refusal score.
        ships: (n, layer, head) KL(base || head off) of the next token on clean prompts, in nats.
        benign: the same on corrupted prompts: what switching the head off costs elsewhere.
    """

    mode: str
    necessity: Scores
    ships: np.ndarray
    benign: np.ndarray

    def to_dataframe(self) -> Any:
        """One row per head: necessity with its interval, Ships, KL on the other side."""
        table = self.necessity.to_dataframe()
        kl = {"ships": self.ships, "benign_kl": self.benign}
        return table.assign(**{name: values.mean(0).ravel() for name, values in kl.items()})


@reads_arguments
def scan_heads(
    model: LanguageModel,
    task: Task,
    switch: SwitchOff,
    *,
    layers: Sequence[int] | None = None,
    by: Literal["head", "kv_head"] = "head",
    progress: Progress | None = None,
) -> HeadScan:
    """Every head switched off at all tokens, and what that does to the next token.

        Ships(h) = KL(p || p with h off),   necessity(h) = m - m with h off

    Args:
        model: a model with a fast engine.
        task: clean prompts show the behaviour, corrupted ones do not; any lengths.
        switch: how, from `interp.switching.switch_off`.
        layers: which; all by default.
        by: "kv_head" switches off the heads that share a key/value head together.
        progress: called with (prompts done, prompts in all).

    Raises:
        InterpError: no fast engine, inside `intervene`, or sides that do not differ.

    Source: Ships, arXiv 2410.13708 (ydyjya/SafetyHeadAttribution), which adds 1e-12 inside the
    logarithms; here the KL is exact.
    """
    decoder = model.require_decoder("scanning heads")
    model.refuse_changed("scanning heads", HOOKED)
    sides, runner = both_sides(model, task), Runner(decoder)
    chosen = within(layers, model.n_layers, "layer", model.name)
    size = model.n_kv_heads if by == "kv_head" else model.n_heads
    units = [(layer, _heads(model, unit, by)) for layer in chosen for unit in range(size)]
    kls, metrics = np.zeros((2, len(task), len(units))), np.zeros((len(task), len(units)))
    ends = np.zeros((2, len(task)))
    with torch.no_grad():
        for i in range(len(task)):
            targets = sides.targets.select(torch.tensor([i]))
            for side, prompts in enumerate((sides.clean, sides.corrupted)):
                base = baseline(runner, [prompts[i]], frozenset({"z"}))
                plain = final_hidden(runner, base)
                changes = [_switched(switch, base, *unit) for unit in units]
                hidden = changed_runs(runner, base, changes)
                kls[side, i] = _divergences(decoder.logits(plain), decoder.logits, hidden)
                readout = LogitsOf(decoder=decoder, hidden=plain)
                ends[side, i] = float(task.metric(readout, targets)[0])
                if side == 0:
                    every = sides.targets.select(torch.full((len(units),), i))
                    readout = LogitsOf(decoder=decoder, hidden=hidden)
                    metrics[i] = ends[0, i] - task.metric(readout, every).numpy()
            if progress is not None:
                progress(i + 1, len(task))
    shape = (len(task), len(chosen), size)
    necessity = head_scores(
        model,
        task,
        metrics.reshape(shape),
        (ends[0], ends[1]),
        method=f"{switch.mode} ablation",
        direction="noise",
        metric=(task.metric.name, task.metric.unit),
        layers=chosen,
        by=by,
    )
    return HeadScan(
        mode=switch.mode,
        necessity=necessity,
        ships=kls[0].reshape(shape),
        benign=kls[1].reshape(shape),
    )


def _heads(model: LanguageModel, unit: int, by: str) -> tuple[int, ...]:
    group = model.n_heads // model.n_kv_heads
    return tuple(range(unit * group, (unit + 1) * group)) if by == "kv_head" else (unit,)


def _switched(switch: SwitchOff, base: Baseline, layer: int, heads: tuple[int, ...]) -> Change:
    z, v = base.site(layer, "z"), base.site(layer, "v")
    new = [switch.new(Component(layer, "z", h), z[:, h], v[:, h // switch.group]) for h in heads]
    return Change(layer=layer, heads=heads, values=torch.stack(new, 1))


def _divergences(
    plain: Tensor, logits_of: Callable[[Tensor], Tensor], hidden: Tensor, step: int = 64
) -> np.ndarray:
    """(changes,) KL(plain || changed) in float64, a few changes at a time."""
    base = plain.double().log_softmax(-1)
    pieces = [
        (base.exp() * (base - logits_of(part).double().log_softmax(-1))).sum(-1).cpu()
        for part in hidden.split(step)
    ]
    return torch.cat(pieces).numpy()


# -- groups -------------------------------------------------------------------------------------


def subspace_shift(before: Tensor, after: Tensor, *, k: int = 1, centred: bool = False) -> float:
    """Generalised Ships: the sum of the k angles between two sets of states, in radians.

        sum_r arccos sigma_r(U^T U'),   U, U' the first k left singular vectors of (n, d) states

    Row i of both is the same prompt. The released code keeps one vector, does not centre, and
    returns degrees: then the states' mean decides. `centred` takes it off first.

    Raises:
        InterpError: other shapes, or k beyond the number of prompts.
    """
    if before.shape != after.shape or before.dim() != 2 or not 1 <= k <= min(before.shape):
        found = f"states {tuple(before.shape)} and {tuple(after.shape)}, k={k}"
        raise InterpError("the angle between two sets of states", found, "same prompts, smaller k")
    bases = []
    for states in (before.double(), after.double()):
        rows = states - states.mean(0) if centred else states
        bases.append(torch.linalg.svd(rows, full_matrices=False)[0][:, :k])
    cosines = torch.linalg.svdvals(bases[0].T @ bases[1])
    return float(torch.arccos(cosines.clamp(-1, 1)).sum())


@dataclass(frozen=True, kw_only=True)
class HeadGroup:
    """Heads in the order a greedy search added them.

    curve: the objective after each. null: the whole group's against random heads of the same
    layers, searched for nothing: a searched group is expected to exceed it.
    """

    heads: tuple[str, ...]
    curve: np.ndarray
    objective: str
    null: Null | None


@reads_arguments
def sahara(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    switch: SwitchOff,
    *,
    size: int = 3,
    candidates: Sequence[str] | None = None,
    objective: Literal["subspace", "kl"] = "subspace",
    k: int = 1,
    centred: bool = False,
    draws: int = 20,
    seed: int = 0,
    progress: Progress | None = None,
) -> HeadGroup:
    """Greedy search for the heads that, switched off together, change the model most.

    Each step adds the head that gives the largest objective with those already found: the shift
    of the last-token states behind the top layer (`subspace_shift`), or the mean KL of the next
    token. Takes size * candidates hooked passes: give as candidates the best of a `scan_heads`.

    Args:
        model: any model.
        prompts: prompts that are refused.
        switch: how, from `interp.switching.switch_off`.
        size: heads searched for.
        candidates: labels; all heads by default.
        objective: see above.
        k: singular vectors, for "subspace".
        centred: whether the states' mean is taken off, for "subspace".
        draws: random groups; 0 for no null.
        seed: of these.
        progress: called with (steps done, steps in all).

    Raises:
        InterpError: an unknown objective, or fewer candidates than heads wanted.

    Source: arXiv 2410.13708 (ydyjya/SafetyHeadAttribution, lib/Sahara).
    """
    if objective not in ("subspace", "kl"):
        raise unknown("objective", objective, ("subspace", "kl"))
    every = [f"L{i}H{h}" for i in range(model.n_layers) for h in range(model.n_heads)]
    pool = listed(every if candidates is None else candidates)
    if not 0 < size <= len(pool):
        raise InterpError(f"{size} of {len(pool)} heads", "too few candidates", "give more")
    top = model.n_layers - 1

    def run(heads: Sequence[str]) -> tuple[Tensor, Tensor]:
        with intervene(model, switch.interventions(heads) if heads else []):
            seen = run_with_cache(
                model, prompts, sites=["resid_post"], layers=[top], positions="last"
            )
        return seen[top, "resid_post"], seen.logits.double().log_softmax(-1)

    states, logs = run(())

    def value(heads: Sequence[str]) -> float:
        after, changed = run(heads)
        if objective == "subspace":
            return subspace_shift(states, after, k=k, centred=centred)
        return float((logs.exp() * (logs - changed)).sum(-1).mean())

    found: list[str] = []
    curve: list[float] = []
    for step in range(size):
        left = [head for head in pool if head not in found]
        values = [value([*found, head]) for head in left]
        best = int(np.argmax(values))
        found.append(left[best])
        curve.append(values[best])
        if progress is not None:
            progress(step + 1, size)
    random = [value(heads) for heads in random_like(model, found, draws, seed=seed)]
    return HeadGroup(
        heads=tuple(found),
        curve=np.array(curve),
        objective=objective,
        null=null_of(curve[-1], np.array(random)) if random else None,
    )


# -- behaviour --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class HeadFlips:
    """How often switching heads off flips what becomes of a prompt.

    before, after: the judged texts. rate: the share of rows that flip. null: the rate against
    random heads of the same layers.
    """

    heads: tuple[str, ...]
    before: Judged
    after: Judged
    rate: Estimate
    null: Null | None


@reads_arguments
def head_flips(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    heads: Sequence[str],
    judge: Judge,
    *,
    rows: Sequence[str],
    max_new_tokens: int = 128,
    least_tokens: int = LEAST_TOKENS,
    draws: int = 0,
    seed: int = 0,
) -> HeadFlips:
    """The flip rate of judged behaviour with heads at zero, in the prompt and in the text.

    Greedy before and after; the baseline is generated anew. Random sets cost a generation each.
    `least_tokens`: see `interp.judging.judge_replies`.

    Raises:
        InterpError: not one row id per prompt, or heads the model lacks.
    """
    prompts, heads, rows = texts_of(prompts), listed(heads), listed(rows)
    asked = ["".join(model.tokenize(prompt).strings) for prompt in prompts]

    def judged(off: Sequence[str]) -> Judged:
        ablation = make_ablation(model, off) if off else None
        options: dict[str, Any] = {} if ablation is None else {"ablation": ablation, "where": "all"}
        texts = generate(model, prompts, max_new_tokens=max_new_tokens, **options)
        replies = replies_of(rows, asked, texts)
        decoding = {"decoding": "greedy", "max_new_tokens": max_new_tokens}
        return judge_replies(replies, judge, decoding=decoding, least_tokens=least_tokens)

    before, after = judged(()), judged(heads)
    rate = flip_rate(before, after)
    random = [
        flip_rate(before, judged(other)).mean
        for other in (random_like(model, heads, draws, seed=seed) if draws else [])
    ]
    return HeadFlips(
        heads=tuple(heads),
        before=before,
        after=after,
        rate=rate,
        null=null_of(rate.mean, np.array(random)) if random else None,
    )
