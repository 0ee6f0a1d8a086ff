"""Which paths `path_patching` patches: its arguments, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from interp.core.arguments import Columns, as_positions, listed
from interp.core.components import Component, within
from interp.core.errors import InterpError, unknown
from interp.core.prompts import Task
from interp.models.language_model import LanguageModel
from interp.results.prompt_effects import require_unit
from interp.runs.pairs import PairedRuns, paired_runs, refuse_equal

RECEIVERS = ("q", "k", "v", "post", "mlp_out")


@dataclass(frozen=True, kw_only=True)
class PathSpec:
    """Which paths are asked for.

    Attributes:
        receivers: labels, or "logits" alone.
        senders: "heads" or "mlps".
        layers: the senders' layers; None for all.
        direction: "noise" or "denoise".
        positions: where senders are patched, see `interp.core.arguments.Columns`.
        freeze_mlps: whether MLPs between sender and receiver keep their base values.
        unit: "gap" or "metric".

    Raises:
        InterpError: unknown senders or an unknown unit, receivers that are no list, or positions
            that are neither names nor whole numbers.
    """

    receivers: Sequence[str]
    senders: str = "heads"
    layers: Sequence[int] | None = None
    direction: str = "noise"
    positions: Columns = "all"
    freeze_mlps: bool = False
    unit: str = "gap"

    def __post_init__(self) -> None:
        require_unit(self.unit)
        if self.senders not in ("heads", "mlps"):
            raise unknown("senders", self.senders, ("heads", "mlps"))
        object.__setattr__(self, "receivers", listed(self.receivers))
        object.__setattr__(self, "positions", as_positions(self.positions))


@dataclass(frozen=True, kw_only=True)
class PathSweep:
    """The paths of a task: what was asked for, checked and found in the prompts.

    Attributes:
        spec: what was asked for.
        runs: the two runs of every pair, in tokens.
        receivers: the receivers; empty for the logits.
        layers: the senders' layers.
        positions: names of the positions at which senders are patched.
        where: those positions of every prompt, from its first differing token on.
    """

    spec: PathSpec
    runs: PairedRuns
    receivers: tuple[Component, ...]
    layers: tuple[int, ...]
    positions: tuple[str, ...]
    where: list[list[int]]

    @property
    def heads(self) -> bool:
        """Whether senders are heads; else MLPs."""
        return self.spec.senders == "heads"

    @property
    def into(self) -> list[str]:
        """Labels of the receivers."""
        return [str(receiver) for receiver in self.receivers or ("logits",)]

    @property
    def call(self) -> str:
        """The Python call that measures them."""
        spec = self.spec
        return (
            f"scores = interp.path_patching(model, task, receivers={list(spec.receivers)!r}, "
            f"senders={spec.senders!r}, layers={None if spec.layers is None else [*self.layers]}, "
            f"direction={spec.direction!r}, positions={spec.positions!r}, "
            f"freeze_mlps={spec.freeze_mlps}"
            + (")" if spec.unit == "gap" else f", unit={spec.unit!r})")
        )


def lay_out_paths(model: LanguageModel, task: Task, spec: PathSpec) -> PathSweep:
    """The two runs of every pair, and the paths in them.

    Raises:
        InterpError: see `path_patching`.
    """
    runs = paired_runs(model, task, spec.direction, strings=True)
    refuse_equal(runs, task)
    parsed = parse_receivers(model, spec.receivers)
    names, where = _positions(runs, spec.positions)
    return PathSweep(
        spec=spec,
        runs=runs,
        receivers=tuple(parsed),
        layers=tuple(within(spec.layers, model.n_layers, "layer", model.name)),
        positions=names,
        where=where,
    )


def parse_receivers(model: LanguageModel, labels: Sequence[str]) -> list[Component]:
    """The receivers; empty for the logits."""
    if labels == ["logits"]:
        return []
    found = []
    for label in labels:
        if label == "logits":
            raise InterpError(f"receivers {list(labels)}", "logits and others", "give logits alone")
        part = Component.parse(label)
        if part.site not in RECEIVERS:
            raise InterpError(
                f"receiver {label!r}",
                f"site {part.site} is no input of a component",
                "write logits, L9H6.q, L9KV2.k, L9KV2.v, L5.mlp_out or L26N6475",
            )
        model.require_component(part)
        found.append(part)
    if not found:
        raise InterpError("path patching", "no receivers", "name at least one")
    return found


def _positions(runs: PairedRuns, positions: Columns) -> tuple[tuple[str, ...], list[list[int]]]:
    """Names, and the sender positions of each prompt, from its first differing token on."""
    if isinstance(positions, str) and positions == "all":
        names, chosen = ("all",), [set(range(len(prompt))) for prompt in runs.base]
    else:
        names, columns = runs.encoded.columns(positions)
        chosen = list(map(set, zip(*columns, strict=True)))
    pairs = zip(chosen, runs.differ, strict=True)
    return names, [sorted(p for p in some if p >= first) for some, first in pairs]
