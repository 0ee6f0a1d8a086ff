"""Which paths `path_patching` patches: its arguments, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Required, TypedDict

from interp.core.arguments import Columns, as_positions, listed
from interp.core.components import Component, within
from interp.core.errors import InterpError, unknown
from interp.core.prompts import Task
from interp.models.language_model import LanguageModel
from interp.patching.spec import UNITS
from interp.runs.pairs import PairedRuns, paired_runs, refuse_equal

RECEIVERS = ("q", "k", "v", "post", "mlp_out")


class PathKeywords(TypedDict, total=False):
    """The keywords of `path_patching` that say what is measured."""

    receivers: Required[Sequence[str]]
    senders: str
    layers: Sequence[int] | None
    direction: str
    positions: Columns
    freeze_mlps: bool
    unit: str


@dataclass(frozen=True, kw_only=True)
class PathSpec:
    """Which paths are patched.

    Attributes:
        receivers: the receivers; empty for the logits.
        heads: whether senders are heads; else MLPs.
        layers: the senders' layers.
        direction: "noise" or "denoise".
        positions: names of the positions at which senders are patched.
        where: those positions of every prompt, from its first differing token on.
        freeze_mlps: whether MLPs between sender and receiver keep their base values.
        unit: "gap" or "metric".
    """

    receivers: tuple[Component, ...]
    heads: bool
    layers: tuple[int, ...]
    direction: str
    positions: tuple[str, ...]
    where: list[list[int]]
    freeze_mlps: bool
    unit: str

    @property
    def into(self) -> list[str]:
        """Labels of the receivers."""
        return [str(receiver) for receiver in self.receivers or ("logits",)]


def lay_out_paths(
    model: LanguageModel,
    task: Task,
    *,
    receivers: Sequence[str],
    senders: str = "heads",
    layers: Sequence[int] | None = None,
    direction: str = "noise",
    positions: Columns = "all",
    freeze_mlps: bool = False,
    unit: str = "gap",
) -> tuple[PairedRuns, PathSpec, str]:
    """The two runs of every pair, the paths, and the Python call that measures them.

    Raises:
        InterpError: see `path_patching`.
    """
    if unit not in UNITS:
        raise unknown("unit", unit, UNITS)
    if senders not in ("heads", "mlps"):
        raise unknown("senders", senders, ("heads", "mlps"))
    runs = paired_runs(model, task, direction, strings=True)
    refuse_equal(runs, task)
    labels, positions = listed(receivers), as_positions(positions)
    parsed = parse_receivers(model, labels)
    chosen = within(layers, model.n_layers, "layer", model.name)
    names, where = _positions(runs, positions)
    call = (
        f"scores = interp.path_patching(model, task, receivers={labels!r}, "
        f"senders={senders!r}, layers={chosen if layers is not None else None}, "
        f"direction={direction!r}, positions={positions!r}, freeze_mlps={freeze_mlps}"
        + (")" if unit == "gap" else f", unit={unit!r})")
    )
    spec = PathSpec(
        receivers=tuple(parsed),
        heads=senders == "heads",
        layers=tuple(chosen),
        direction=direction,
        positions=names,
        where=where,
        freeze_mlps=freeze_mlps,
        unit=unit,
    )
    return runs, spec, call


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
