"""How much a found circuit depends on five choices: prompts, wording, settings, seeds, noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import torch

from interp.circuits.circuit import Circuit, jaccard
from interp.circuits.evaluation.stability import stability
from interp.circuits.ranking import By, top_edges
from interp.circuits.scoring.score_edges import score_edges
from interp.circuits.trials.options import GraphKeywords
from interp.core.arguments import reads_arguments
from interp.core.errors import InterpError
from interp.core.prompts import Task
from interp.core.records import Record
from interp.engine.stopping import Cancelled
from interp.models.language_model import LanguageModel
from interp.models.loading import plain_view
from interp.models.weight_delta import WeightDelta

SETTINGS: tuple[Mapping[str, Any], ...] = ({"method": "EAP"}, {"steps": 2}, {"rule": "left"})
"""Other settings of EAP-IG over inputs."""


@dataclass(frozen=True, kw_only=True)
class StabilityAxis:
    """Circuits found after one choice was made otherwise.

    Attributes:
        axis: "prompts", "wording", "settings", "seeds" or "noise".
        what: what was changed, in words.
        jaccard: (circuits,) Jaccard index of each with the circuit it is compared with.
    """

    axis: str
    what: str
    jaccard: np.ndarray

    def __str__(self) -> str:
        found = self.jaccard
        return (
            f"{self.axis}: {found.mean():z.3f}, {found.min():z.3f} to {found.max():z.3f} "
            f"({len(found)}: {self.what})"
        )


@dataclass(frozen=True, kw_only=True)
class StabilityAxes(Record):
    """A circuit, and how much of it is found again after other choices.

    Attributes:
        circuit: the circuit of all prompts, with the settings as given.
        axes: the axes that were measured.
        refused: axes that could not be measured, with the reason.
        n: number of prompts.
    """

    circuit: Circuit
    axes: tuple[StabilityAxis, ...]
    refused: dict[str, str]
    n: int

    def __str__(self) -> str:
        share = self.circuit.share
        lines = [
            f"{self.circuit.n_edges} edges, n={self.n}; Jaccard with circuits found otherwise "
            f"(by chance about {share / (2 - share):z.3f}):"
        ]
        lines += [f"  {axis}" for axis in self.axes]
        lines += [f"  {axis}: not measured: {why}" for axis, why in self.refused.items()]
        return "\n".join(lines)


@reads_arguments
def stability_axes(
    model: LanguageModel,
    task: Task,
    n: int,
    *,
    wordings: Sequence[Task] = (),
    method: str = "EAP-IG-inputs",
    settings: Sequence[Mapping[str, Any]] | None = None,
    draws: int = 20,
    runs: int = 2,
    noise: float = 0.1,
    by: By = "absolute",
    connected: bool = True,
    **run: Unpack[GraphKeywords],
) -> StabilityAxes:
    """Find a circuit of n edges again after one choice is made otherwise, for five choices.

    - prompts: `draws` circuits of prompts drawn with replacement; no further run.
    - wording: a circuit of each task in `wordings`, which ask the same in other words.
    - settings: a circuit with each of `settings`, keywords of `score_edges`.
    - seeds: `runs` circuits under resample ablation with other seeds, compared with that of the
      first seed: another prompt is drawn to replace each clean one.
    - noise: `runs` circuits with Gaussian noise in the token embeddings, `noise` times their
      standard deviation. Where embedding and unembedding are tied, it is in both.

    All but "seeds" are compared with the circuit of the task as given. If the prompts have no
    partner of their length ("seeds") or noise leaves no gap, the axis is named with the reason. No
    axis says whether a circuit is right: a method can be stable and wrong.

    Args:
        model: a model with a fast engine.
        task: prompt pairs.
        n: number of edges of the circuits.
        wordings: tasks that ask the same otherwise; without them there is no such axis.
        method: a method of `score_edges`.
        settings: see above; an empty list leaves the axis out. By default `SETTINGS` for
            "EAP-IG-inputs", and none for other methods.
        draws: resampled circuits.
        runs: runs of each of the last two axes; 0 leaves them out.
        noise: see above.
        by: the ranking, see `interp.circuits.ranking.By`.
        connected: see `top_edges`.
        run: as `score_edges`; seed is that of the first run.

    Raises:
        InterpError: no draws, no noise, negative runs, or as `score_edges` and `top_edges` on the
            task as given, on a wording or with a setting.

    Source: the five axes follow arXiv 2510.00845; there noise is in the corrupted prompts.
    """
    if draws < 1 or runs < 0 or noise <= 0:
        found = f"{draws} draws, {runs} runs, noise {noise:g}"
        raise InterpError("the stability of a circuit", found, "give positive numbers")
    seed = run.get("seed", 0)

    def mask(on: Task = task, **other: Any) -> np.ndarray:
        used: Any = {"method": method, **run, **other}
        return top_edges(score_edges(model, on, **used), n, by=by, connected=connected)

    used: Any = {"method": method, **run}
    scores = score_edges(model, task, per_prompt=True, **used)
    drawn = stability(scores, n, draws=draws, by=by, connected=connected, seed=seed)
    whole = drawn.circuit.mask
    axes = [StabilityAxis(axis="prompts", what="drawn with replacement", jaccard=drawn.jaccard)]

    refused: dict[str, str] = {}

    def measured(axis: str, what: str, beside: np.ndarray, found: Iterable[np.ndarray]) -> None:
        """Add an axis of masks, if there are any."""
        each = np.array([jaccard(beside, one) for one in found])
        if len(each):
            axes.append(StabilityAxis(axis=axis, what=what, jaccard=each))

    def attempted(axis: str, found: Iterable[np.ndarray]) -> list[np.ndarray]:
        """The masks; none if the prompts have no partner of their length, or no gap any more."""
        try:
            return [*found]
        except Cancelled:
            raise
        except InterpError as refusal:
            refused[axis] = f"{refusal.asked}: {refusal.found}"
            return []

    names = ", ".join(other.name for other in wordings)
    measured("wording", names, whole, (mask(other) for other in wordings))
    if settings is None:
        settings = SETTINGS if method == "EAP-IG-inputs" else ()
    told = "; ".join(" ".join(f"{k} {v}" for k, v in one.items()) for one in settings)
    measured("settings", told, whole, (mask(**one) for one in settings))
    seeds = range(seed, seed + runs + 1) if runs else ()
    again = attempted("seeds", (mask(ablation="resample", seed=one) for one in seeds))
    measured("seeds", "of resample ablation", again[0] if again else whole, again[1:])
    what = f"{noise:g} standard deviations in the embeddings"
    noisy = (_noisy(model, noise, one, mask) for one in seeds[:runs])
    measured("noise", what, whole, attempted("noise", noisy))
    return StabilityAxes(circuit=drawn.circuit, axes=tuple(axes), refused=refused, n=scores.n)


def _noisy(
    model: LanguageModel, noise: float, seed: int, mask: Callable[[], np.ndarray]
) -> np.ndarray:
    """The circuit with noise in the token embeddings, which are restored."""
    view = plain_view(model)
    table = view.get_input_embeddings().weight
    (name,) = (x for x, held in view.named_parameters() if held is table)
    drawn = torch.randn(table.shape, generator=torch.Generator().manual_seed(seed))
    added = (noise * table.detach().float().std().cpu() * drawn).to(table)
    with WeightDelta(name=f"noise {seed}", base=model.hash, dense={name: added}).applied(model):
        return mask()
