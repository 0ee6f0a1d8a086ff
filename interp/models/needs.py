"""What a model needs, from its configuration alone: memory, the engine, the time of a sweep."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
import psutil
import torch

from interp.core.components import SITES
from interp.core.errors import InterpError
from interp.core.schema import Count, Share, checked
from interp.engine.cost import LOSS, duration, floor_flops, matmul_rate, roughly
from interp.engine.forward import Runner
from interp.engine.sweep import Cells, site_widths, token_bytes
from interp.models.cards import CARDS
from interp.models.language_model import LanguageModel
from interp.models.weightless import UNTRIED, weightless
from interp.plots.tables import Tabled

if TYPE_CHECKING:
    from pandas import DataFrame

BYTES = {"float32": 4, "bfloat16": 2}
"""Bytes of a number; float16 is as bfloat16."""

HERE = "this machine"
SHARE = 0.3
"""The share of a card's peak that is assumed. No card was measured."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that a model needs in one number format.

    weights: all weights. runs: what `run_with_cache` keeps of all sites at all tokens, n prompts.
    pairs: the stored runs of n prompt pairs, from which a sweep of heads restarts. sweep: the
    smallest memory budget of that sweep. It cuts the prompts into blocks, so it never needs `pairs`
    at once. The last three are None if the sizes of a layer are not known.
    """

    dtype: str
    weights: float
    runs: float | None
    pairs: float | None
    sweep: float | None

    @property
    def least(self) -> float:
        """Bytes of the weights and the smallest sweep."""
        return self.weights + (self.sweep or 0)


@dataclass(frozen=True, kw_only=True)
class Place:
    """A machine or a GPU, and what a model does there.

    memory: its bytes. cards: by number format, how many of them hold the weights and the smallest
    sweep. dtype: the number format of the sweep. rate: operations a second. measured: whether
    `rate` was measured here; else it is a share of a data sheet's peak. seconds: the time of the
    sweep; None if one does not hold it.
    """

    name: str
    memory: float
    cards: dict[str, int]
    dtype: str
    rate: float
    measured: bool
    seconds: float | None

    @property
    def words(self) -> str:
        """The time in words: a range of a factor of 9 on this machine, as for any first sweep."""
        if self.seconds is None:
            return "does not fit"
        return roughly(self.seconds) if self.measured else f"about {duration(self.seconds)}"


@dataclass(frozen=True, kw_only=True, repr=False)
class Fit(Tabled):
    """What a model needs; see `fit`.

    architecture: the class in transformers. parameters: number of weights. engine: None if the fast
    engine reads it, or else why not. sites: for each site None, or the reason the tiny model of the
    family that was tried does not offer it; empty if none was tried. notes: what could not be told,
    and what differs. n, tokens: the sweep's prompt pairs and the tokens of each. cells: heads
    patched in each pair. flops: operations that the sweep cannot avoid. share: see `fit`.
    """

    name: str
    architecture: str
    parameters: int
    n_layers: int
    n_heads: int
    engine: str | None
    sites: dict[str, str | None]
    notes: tuple[str, ...]
    n: int
    tokens: int
    cells: int
    flops: float
    share: float
    memory: tuple[Memory, ...]
    places: tuple[Place, ...]

    def __repr__(self) -> str:
        held = " and ".join(f"{m.weights / 1e9:.3g} GB in {m.dtype}" for m in self.memory)
        how = (
            "the fast engine reads it"
            if self.engine is None
            else f"it runs through hooks: {self.engine}"
        )
        return f"{self.name} has {self.parameters:,} weights, {held}; {how}."

    def to_dataframe(self) -> DataFrame:
        """One row for this machine and each card: memory, how many hold it, the sweep's time."""
        from pandas import DataFrame

        rows = [asdict(place) for place in self.places]
        for row in rows:
            row |= {f"cards {dtype}": n for dtype, n in row.pop("cards").items()}
        return DataFrame(rows)


def fit(
    model: str, *, n: int = 32, tokens: int = 32, share: float = SHARE, revision: str | None = None
) -> Fit:
    """What a model needs, from its configuration alone. No weights are read or downloaded.

        weights  = parameters * bytes of a number
        seconds  = 1.4 * flops / (measured operations a second)     on this machine
        seconds  = flops / (share * peak)                           on a card

    The sweep is exact patching of every head (site z, all tokens) on n prompt pairs of equal
    length that differ from the first token on; pairs that differ later take less. `flops` is the
    floor of `interp.engine.cost.floor_flops`, or of whole runs if the model runs through hooks.
    Times of cards are calculated, not measured: the peak is that of the data sheet, and `share` is
    an assumption. Bytes are of tensors alone, without what libraries and the system take.

    Args:
        model: a name as in `load_model`, or a config.json.
        n: prompt pairs.
        tokens: tokens of each prompt.
        share: the share of a card's peak that is reached, above 0 and at most 1.
        revision: of a Hugging Face id.

    Raises:
        InterpError: there is no such configuration, `load_model` would refuse it, prompts are
            longer than it takes, or a number is out of range.
    """
    n, tokens = checked(Count, n, "n of fit()"), checked(Count, tokens, "tokens of fit()")
    share = checked(Share, share, "share of fit()")
    built = weightless(model, revision=revision)
    if built.max_positions is not None and tokens > built.max_positions:
        found = f"{model} takes at most {built.max_positions}"
        raise InterpError(f"prompts of {tokens} tokens", found, "give fewer tokens")
    parameters = sum(p.numel() for p in built.hf_model.parameters())
    cells = built.n_layers * built.n_heads
    flops = n * _sweep_flops(built, tokens, parameters)
    memory = tuple(_memory(built, dtype, parameters, n, tokens) for dtype in BYTES)
    return Fit(
        name=built.name,
        architecture=type(built.hf_model).__name__,
        parameters=parameters,
        n_layers=built.n_layers,
        n_heads=built.n_heads,
        engine=built.engine_reason,
        sites={} if UNTRIED in built.notes else built.sites,
        notes=built.notes,
        n=n,
        tokens=tokens,
        cells=cells,
        flops=flops,
        share=share,
        memory=memory,
        places=_places(memory, flops, share),
    )


def _sweep_flops(model: LanguageModel, tokens: int, parameters: int) -> float:
    """Operations of one pair's sweep. All heads of a layer take the same, so one is counted."""
    if model.decoder is None:
        return 2.0 * parameters * tokens * model.n_layers * model.n_heads
    zeros = np.zeros(model.n_layers, dtype=np.int64)
    layers = np.arange(model.n_layers)
    cells = Cells(
        prompt=zeros,
        cell=layers,
        layer=layers,
        component=zeros,
        count=zeros + tokens,
        positions=np.tile(np.arange(tokens), model.n_layers),
    )
    return model.n_heads * floor_flops(model.decoder, cells, np.array([tokens]), "z")


def _memory(model: LanguageModel, dtype: str, parameters: int, n: int, tokens: int) -> Memory:
    size, runs, pairs, sweep = BYTES[dtype], None, None, None
    if (decoder := model.decoder) is not None:
        widths = site_widths(decoder, tokens)
        offered = sum(widths[site] for site in SITES if model.sites[site] is None)
        runs = float(size * n * tokens * model.n_layers * offered)
        runner = Runner(decoder)
        scale = size / (torch.finfo(runner.dtype).bits // 8)
        stored, flight = (scale * x for x in token_bytes(runner, "z", tokens))
        pairs, sweep = n * tokens * stored, 2 * tokens * max(stored, flight)
    return Memory(
        dtype=dtype, weights=float(size * parameters), runs=runs, pairs=pairs, sweep=sweep
    )


def _places(memory: tuple[Memory, ...], flops: float, share: float) -> tuple[Place, ...]:
    """This machine, with the GPU that `load_model` would use if there is one, and the cards."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        called, held = torch.cuda.get_device_properties(0).name, torch.cuda.mem_get_info()[1]
    else:
        called, held = "processor", psutil.virtual_memory().total

    def place(name: str, size: float, dtype: str, rate: float, seconds: float) -> Place:
        cards = {one.dtype: ceil(one.least / size) for one in memory}
        return Place(
            name=name,
            memory=size,
            cards=cards,
            dtype=dtype,
            rate=rate,
            measured=name.startswith(HERE),
            seconds=seconds if cards[dtype] == 1 else None,
        )

    rate = matmul_rate(torch.float32, device)
    here = place(f"{HERE} ({called})", float(held), "float32", rate, LOSS * flops / rate)
    rates = [share * card.tflops * 1e12 for card in CARDS]
    return (
        here,
        *(
            place(card.name, card.memory_gb * 1e9, "bfloat16", rate, flops / rate)
            for card, rate in zip(CARDS, rates, strict=True)
        ),
    )
