"""Running a model and keeping what it computed, where asked and no more."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.core.arguments import Positions, listed, marks_of, places_of, reads_arguments, texts_of
from interp.core.components import SINGLE, SITES, Component, check_site, within
from interp.core.errors import InterpError
from interp.core.files import cache_dir
from interp.core.positions import Prompt, TokenizedPrompt
from interp.core.prompts import Task
from interp.core.records import read_sealed, write_sealed
from interp.engine.memory import budget_bytes, says_too_little
from interp.engine.stopping import stop_if_asked
from interp.models.batches import Batch
from interp.models.bridge import hook_name
from interp.models.language_model import Address, Hook, LanguageModel
from interp.plots.tables import Tabled
from interp.results.keys import result_key
from interp.runs.changed_runs import ChangedRuns
from interp.runs.stored_runs import StoredRuns

if TYPE_CHECKING:
    from pandas import DataFrame

KIND, VERSION = "activations", 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Activations(Tabled):
    """Captured activations: `acts["L5.z"]`, `acts[5, "z"]`, or `acts["L5H2"]` for one head.

    TransformerLens' keys are read as well, `acts["z", 5]` and `acts["blocks.5.attn.hook_z"]`, with
    the axes below. Layers below 0 are counted from the end. Iterating gives labels such as "L5.z";
    `len` counts them.

    One prompt position: (prompts, ...). Several: (prompts, positions, ...), rows shorter than
    the longest prompt filled with zeros and `mask` False there. Patterns are
    (prompts, positions, head, key_pos). `logits` holds the last token's, and `tokens` the texts of
    each prompt's tokens. Two are equal only where they are one object; `torch.equal` compares what
    they hold.
    """

    values: Mapping[Address, Tensor]
    mask: Tensor
    logits: Tensor
    tokens: tuple[tuple[str, ...], ...]
    path: Path | None = None

    def __repr__(self) -> str:
        shapes = {site: tuple(value.shape) for (_, site), value in self.values.items()}
        layers = sorted({layer for layer, _ in self.values})
        shown = ", ".join(f"{site} {shape}" for site, shape in shapes.items())
        return (
            f"Activations({len(self.mask)} prompts, {len(layers)} layers from {layers[0]} to "
            f"{layers[-1]}: {shown}; read acts['L{layers[0]}.{next(iter(shapes))}'])"
        )

    def to_dataframe(self) -> DataFrame:
        """One row per site: the layers that were captured, and the shape of each."""
        from pandas import DataFrame

        layers: dict[tuple[str, str], list[int]] = {}
        for (layer, site), value in self.values.items():
            layers.setdefault((site, str(tuple(value.shape))), []).append(layer)
        rows = [[site, f"{at[0]} to {at[-1]}", shape] for (site, shape), at in layers.items()]
        return DataFrame(rows, columns=["site", "layers", "shape"])

    def __iter__(self) -> Iterator[str]:
        return (f"L{layer}.{site}" for layer, site in self.values)

    def __len__(self) -> int:
        return len(self.values)

    def __contains__(self, key: object) -> bool:
        try:
            return self[key] is not None  # type: ignore[index]
        except InterpError:
            return False

    def __getitem__(self, key: str | Address | tuple[str, int]) -> Tensor:
        address, component = key, None
        if isinstance(key, tuple) and len(key) == 2 and isinstance(key[0], str):
            address = key[::-1]
        elif isinstance(key, str) and key.startswith("blocks."):
            address = {hook_name(*at): at for at in self.values}.get(key)
        elif isinstance(key, str):
            with suppress(InterpError):
                part = Component.parse(key)
                address, component = (part.layer, part.site), part.index
        layers = sorted({layer for layer, _ in self.values})
        if isinstance(address, tuple) and isinstance(address[0], int) and address[0] < 0:
            address = (layers[-1] + 1 + address[0], *address[1:])
        if not isinstance(address, Hashable) or address not in self.values:
            sites = list(dict.fromkeys(site for _, site in self.values))
            at, site = layers[-1], key if key in sites else sites[0]
            raise InterpError(
                f"activation {key!r:.60}",
                f"not captured: those are {', '.join(sites)} of the layers {layers}",
                f"write a layer and a site, such as acts['L{at}.{site}'] or acts[{at}, '{site}']",
            )
        value = self.values[address]  # type: ignore[index]
        if component is None:
            return value
        axis = self.mask.ndim
        within([component], value.shape[axis], str(SITES[address[1]]), f"activation {key!r}")  # type: ignore[index]
        return value.select(axis, component)


@reads_arguments
@says_too_little
def run_with_cache(
    model: LanguageModel,
    prompts: Task | Prompt | Sequence[Prompt],
    *,
    sites: Iterable[str] | None = None,
    layers: Iterable[int] | None = None,
    positions: Positions = "all",
    padding_side: str = "right",
    budget_gb: float = 2.0,
    to_disk: bool = False,
    runs: StoredRuns | ChangedRuns | None = None,
) -> Activations:
    """The activations of some sites, layers and positions, and the last token's logits.

    Args:
        model: a loaded model.
        prompts: texts, token tuples, or a task (its clean prompts, whose named positions count);
            one text or one token tuple is one prompt.
        sites: site names, see `interp.core.components.SITES`; one string is one site. By default
            all that the model has.
        layers: which layers; all by default.
        positions: "all", or one token of each prompt: see `interp.core.arguments.Positions`.
        padding_side: changes nothing in the result.
        budget_gb: the most the result may take in memory; more is refused before the run.
        to_disk: keep the result under the cache, keyed by its content, and memory-map it back;
            a second call with the same arguments reads the file.
        runs: read one of the last tokens of each prompt in these, instead of running the model;
            in changed runs, the changed value.

    Raises:
        InterpError: an absent site, a position a prompt lacks, a result over the budget, or runs
            of other prompts or of fewer last tokens.
    """
    if sites is None:
        sites = [site for site, lacking in model.sites.items() if lacking is None]
    sites = list(dict.fromkeys(map(check_site, listed(sites))))
    chosen = within(layers, model.n_layers, "layer", model.name)
    if to_disk:
        model.refuse_changed("keeping activations", "to_disk=False")
    if not sites:
        raise InterpError("capturing activations", "no sites", f"give some of {', '.join(SITES)}")
    for site in sites:
        model.require_site(site)
    tokenized = [model.tokenize(text) for text in texts_of(prompts)]
    if not tokenized:
        raise InterpError("capturing activations", "no prompts", "give at least one")
    rows = [prompt.tokens for prompt in tokenized]
    squeeze = not (isinstance(positions, str) and positions == "all")
    if squeeze:
        where = [[place] for place in places_of(positions, tokenized, marks_of(prompts))]
    else:
        where = [list(range(len(row))) for row in rows]
    width, length = max(len(w) for w in where), max(len(r) for r in rows)
    shapes = {site: (len(rows), width, *_shape(model, site, length)) for site in sites}
    size = torch.finfo(model.dtype).bits // 8
    total = sum(torch.Size(shape).numel() for shape in shapes.values()) * len(chosen) * size
    if total > budget_bytes(budget_gb):
        raise InterpError(
            f"capturing {', '.join(sites)} at {len(chosen)} layers",
            f"{total / 1e9:z.2f} GB, over the budget of {budget_gb:g} GB",
            "ask for fewer sites, layers or positions, or raise budget_gb",
        )
    if runs is not None:
        if not squeeze or to_disk:
            raise InterpError(
                "reading kept runs",
                f"positions={positions!r}, to_disk={to_disk}",
                "ask for one position of each prompt, in memory",
            )
        addresses = [(layer, site) for layer in chosen for site in sites]
        return _read(model, runs, tokenized, [w[0] for w in where], addresses)

    key, path = None, None
    if to_disk:
        asked = {"sites": sites, "layers": chosen, "padding_side": padding_side}
        key = result_key(KIND, VERSION, model, rows=rows, where=where, squeeze=squeeze, **asked)
        path = cache_dir() / "activations" / f"{key}.safetensors"
        if (found := _open(path, key)) is not None:
            return found

    values: dict[Address, Tensor] = {
        (layer, site): torch.zeros(shapes[site], dtype=model.dtype)
        for layer in chosen
        for site in sites
    }

    def keep(address: Address) -> Hook:
        def hook(value: Tensor, batch: Batch) -> Tensor:
            stop_if_asked()
            seen = value.detach()
            if address[1] == "pattern":
                seen = seen.transpose(1, 2)
            for row, prompt in enumerate(batch.prompts):
                columns = [batch.column(row, p) for p in where[prompt]]
                kept = seen[row, columns].cpu()
                if address[1] == "pattern":
                    first = int(batch.first[row])
                    kept = kept[..., first : first + int(batch.lengths[row])]
                    values[address][prompt, : len(columns), :, : kept.shape[-1]] = kept
                else:
                    values[address][prompt, : len(columns)] = kept
            return value

        return hook

    hooks = {address: [keep(address)] for address in values}
    logits = model.last_logits(rows, hooks=hooks, padding_side=padding_side).cpu()
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, columns in enumerate(where):
        mask[i, : len(columns)] = True
    if squeeze:
        values = {address: value[:, 0] for address, value in values.items()}
        mask = mask[:, 0]
    texts = tuple(prompt.strings for prompt in tokenized)
    plain = Activations(values=values, mask=mask, logits=logits, tokens=texts)
    if path is None:
        return plain
    tensors = {f"L{layer}.{site}": value for (layer, site), value in values.items()}
    try:
        tensors |= {"mask": mask, "logits": logits}
        write_sealed(path, KIND, VERSION, [*map(list, texts)], tensors, key=key)
    except InterpError as error:
        warnings.warn(f"the activations stay in memory: {error}", stacklevel=2)
        return plain
    return _open(path, key) or plain


def _read(
    model: LanguageModel,
    runs: StoredRuns | ChangedRuns,
    prompts: Sequence[TokenizedPrompt],
    where: Sequence[int],
    addresses: Sequence[Address],
) -> Activations:
    """One of the last tokens of each prompt, from kept runs."""
    model.refuse_changed("reading kept runs", "the same call without runs=")
    rows = [prompt.tokens for prompt in prompts]
    back = torch.tensor([len(row) - place for row, place in zip(rows, where, strict=True)])
    runs.require(rows, int(back.max()), "reading")
    each = torch.arange(len(rows))
    return Activations(
        values={at: v.cpu()[each, runs.last - back] for at, v in runs.read(addresses).items()},
        mask=torch.ones(len(rows), dtype=torch.bool),
        logits=runs.logits().cpu(),
        tokens=tuple(prompt.strings for prompt in prompts),
    )


def _shape(model: LanguageModel, site: str, length: int) -> tuple[int, ...]:
    """The trailing shape of a site's value at one position."""
    heads = {"q": model.n_heads, "z": model.n_heads, "k": model.n_kv_heads, "v": model.n_kv_heads}
    if site == "pattern":
        return (model.n_heads, length)
    if site in heads:
        return (heads[site], model.d_head)
    if (axis := SITES[site]) is None:
        return (model.d_model,)
    return (model.size(axis),) if site in SINGLE else (model.size(axis), model.d_model)


def _open(path: Path, key: str | None) -> Activations | None:
    """Memory-mapped activations, or None where there is no sound file of that key."""
    try:
        texts, found = read_sealed(path, KIND, VERSION, key=key, tensors=True)
    except InterpError:
        return None  # not there, or not sound: compute it and replace the file
    values: dict[Address, Tensor] = {}
    for name in [name for name in found if name.startswith("L")]:
        layer, _, site = name[1:].partition(".")
        values[int(layer), site] = found[name]
    return Activations(
        values=values,
        mask=found["mask"],
        logits=found["logits"],
        tokens=tuple(map(tuple, texts)),
        path=path,
    )
