"""The receivers of path patching, by layer and site, and the values recorded for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from interp.core.components import Component
from interp.engine.forward import Replacement
from interp.engine.layout import Indices


@dataclass(frozen=True, kw_only=True)
class Receiver:
    """The receivers of one layer and site; `parts` is None for the whole site."""

    layer: int
    site: str
    parts: Indices | None


@dataclass(kw_only=True)
class Recorded:
    """A receiver's value in step 2, (senders, positions, ...), for all senders upstream of it."""

    receiver: Receiver
    senders: Indices
    values: Tensor

    def edit(self, number: Indices, where: list[int]) -> Replacement:
        """An edit that sets the value at the positions `where`, in row `number[i]` for sender i."""
        parts, senders = self.receiver.parts, len(self.senders)
        each = 1 if parts is None else len(parts)
        return Replacement(
            site=self.receiver.site,
            ids=np.repeat(number[self.senders], len(where) * each),
            positions=np.tile(np.repeat(where, each), senders),
            values=self.values.flatten(0, 1 if parts is None else 2),
            components=None if parts is None else np.tile(parts, senders * len(where)),
        )


def recorded_values(receiver: Receiver, senders: Indices, value: Tensor) -> Recorded:
    """A receiver's slice of a site's value, given as (senders * positions, ...)."""
    value = value.unflatten(0, (len(senders), -1))
    if receiver.parts is not None:
        value = value[:, :, torch.from_numpy(receiver.parts).to(value.device)]
    return Recorded(receiver=receiver, senders=senders, values=value)


def grouped_receivers(parts: Sequence[Component]) -> list[Receiver]:
    """Receivers by layer and site; a whole site includes its parts."""
    sites: dict[tuple[int, str], set[int | None]] = {}
    for part in parts:
        sites.setdefault((part.layer, part.site), set()).add(part.index)
    return [
        Receiver(
            layer=layer,
            site=site,
            parts=None if None in found else np.array(sorted(x for x in found if x is not None)),
        )
        for (layer, site), found in sites.items()
    ]
