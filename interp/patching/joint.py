"""The effect of patching several components together, compared with random sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from interp.core.arguments import listed, reads_arguments
from interp.core.components import Component
from interp.core.errors import InterpError
from interp.core.nulls import FlipTest, Null, flip_test, matched_components, null_of
from interp.core.prompts import Task
from interp.core.statistics import Estimate, ratio_estimate
from interp.engine.forward import Baseline, Replacement, Runner
from interp.engine.memory import says_too_little
from interp.engine.readout import LogitsOf, Progress
from interp.engine.restart import Variants, baseline, final_hidden, restart
from interp.models.language_model import LanguageModel
from interp.runs.pairs import PatchDirection, check_gap, paired_runs


@dataclass(frozen=True, kw_only=True)
class JointEffect:
    """The effect of patching a set of components together, and that of random sets.

    Attributes:
        components: the labels patched.
        effect: fraction of the gap, with its 95 % interval over prompts.
        flips: a test that the effect is above 0, by flipping the signs of the prompts' effects.
            Its p-value is valid on prompts that the set was not selected on.
        null: the effect's rank among random sets of the same kind, layers and size. It is not a
            p-value. None if no random sets were drawn.
    """

    components: tuple[str, ...]
    effect: Estimate
    flips: FlipTest
    null: Null | None

    def __str__(self) -> str:
        random = "" if self.null is None else f"; random sets {self.null.beside}"
        return f"{', '.join(self.components)}: {self.effect}; {self.flips}{random}"


JOINT_SITES = (
    "resid_pre", "q", "k", "v", "z", "attn_out", "resid_mid", "post", "mlp_out", "resid_post"
)  # fmt: skip


@reads_arguments
@says_too_little
def joint_patching(
    model: LanguageModel,
    task: Task,
    components: Sequence[str],
    *,
    direction: PatchDirection = "denoise",
    draws: int = 20,
    seed: int = 0,
    progress: Progress | None = None,
) -> JointEffect:
    """Patch a set of components together at all tokens, and random sets for comparison.

        effect(C) = mean(m[base with every c in C := other] - m[base]) / mean(m[clean] - m[corr.])

    Unit: fraction of the gap. A random set replaces every component by an unlisted one of the same
    site and layer, and a whole site such as mlp_out by that of another layer; see
    `interp.core.nulls.matched_components`.

    Args:
        model: a model with a fast engine.
        task: prompt pairs. To test a selection, use pairs that it was not selected on.
        components: labels such as L9H6, L9KV2.k, L7N12, L5.mlp_out.
        direction: "denoise" or "noise", with the sign of `activation_patching`.
        draws: number of random sets; 0 for none.
        seed: seed of the random sets and the sign flips.
        progress: called with (prompts done, prompts in total).

    Raises:
        InterpError: no fast engine, no components, unknown components, a site other than
            `JOINT_SITES`, a gap below its standard error, or a call inside `intervene`.
    """
    decoder = model.require_decoder("joint patching")
    components = listed(components)
    chosen = [Component.parse(label) for label in components]
    if not chosen or any(part.site not in JOINT_SITES for part in chosen):
        raise InterpError(
            f"patching {list(components)} together",
            f"sites {sorted({part.site for part in chosen})}",
            f"give components of {', '.join(JOINT_SITES)}",
        )
    model.refuse_changed("joint patching", "patch() inside intervene, and last_logits()")
    for part in chosen:
        model.require_component(part)
    runs = paired_runs(model, task, direction)
    rng = np.random.default_rng(seed)
    sets = [
        chosen,
        *(matched_components(chosen, model.n_layers, model.size, rng) for _ in range(draws)),
    ]
    runner = Runner(decoder)
    sites = frozenset(part.site for part in chosen) - {"resid_post"} | {"resid_pre"}
    sign = 1 if direction == "denoise" else -1
    values = np.zeros((len(sets), len(task)))
    ends = np.zeros((2, len(task)))
    with torch.no_grad():
        for prompt in range(len(task)):
            targets = runs.targets.select(torch.tensor([prompt]))
            base, other = (
                baseline(runner, [side[prompt]], sites) for side in (runs.base, runs.other)
            )
            for side, run in enumerate((base, other)):
                hidden = final_hidden(runner, run)
                readout = LogitsOf(decoder=decoder, hidden=hidden)
                ends[side, prompt] = float(task.metric(readout, targets)[0])
            for number, parts in enumerate(sets):
                hidden = _set_together(runner, base, other, parts, int(runs.differ[prompt]))
                readout = LogitsOf(decoder=decoder, hidden=hidden)
                patched = float(task.metric(readout, targets)[0])
                values[number, prompt] = sign * (patched - ends[0, prompt])
            if progress is not None:
                progress(prompt + 1, len(task))
    clean, corrupted = (ends[1], ends[0]) if direction == "denoise" else (ends[0], ends[1])
    check_gap(clean, corrupted)
    gaps = clean - corrupted
    effect = ratio_estimate(values[0], gaps)
    flips = flip_test(lambda signs: signs @ values[0] / gaps.sum(), len(task), seed=seed)
    null = None
    if draws:
        null = null_of(effect.mean, values[1:].mean(1) / gaps.mean())
    return JointEffect(components=tuple(map(str, chosen)), effect=effect, flips=flips, null=null)


def _set_together(
    runner: Runner, base: Baseline, other: Baseline, parts: Sequence[Component], first: int
) -> torch.Tensor:
    """The final hidden state when every component takes its value from the other run."""
    length = int(base.lengths[0])
    if first >= length:
        return final_hidden(runner, base)
    positions = np.arange(first, length)
    edits: dict[int, list[Replacement]] = {}
    for part in parts:
        values = other.site(part.layer, part.site)[first:]
        index = part.index
        edits.setdefault(part.layer, []).append(
            Replacement(
                site=part.site,
                ids=np.zeros_like(positions),
                positions=positions,
                values=values if index is None else values[:, index],
                components=None if index is None else np.full(len(positions), index),
            )
        )
    variants = Variants(
        prompt=np.zeros(1, dtype=np.int64),
        start=np.array([first]),
        layer=np.array([min(edits)]),
        ready=np.zeros(1, dtype=bool),
    )
    return restart(runner, base, variants, edits=edits)
