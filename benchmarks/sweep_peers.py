"""Other ways to patch every head, each run in a process of its own.

`python -m benchmarks.sweep_peers PEER FOLDER` reads the model, the prompts and the request from the
folder, and writes the values and the time of one sweep to it. Only the peer itself is imported
beside torch and Transformers, so that it can run with package versions of its own.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.memory import repeat


@dataclass(frozen=True, kw_only=True)
class Request:
    """A model, one batch of pairs of equal length, and the heads to patch.

    A cell puts the clean z of one head, at one position or at all of them, into the corrupted run.
    Its value is the logit of the right token minus that of the wrong one, averaged over prompts.
    `wrapped` is the model as the peer wraps it.
    """

    model: Any
    wrapped: Any
    clean: Tensor
    corrupted: Tensor
    targets: Tensor
    by_position: bool

    @property
    def layers(self) -> range:
        """All layers."""
        return range(self.model.config.num_hidden_layers)

    @property
    def heads(self) -> int:
        """Heads of a layer."""
        return self.model.config.num_attention_heads

    def writer(self, layer: int) -> str:
        """The module whose input is z of a layer."""
        if self.model.config.model_type == "gpt2":
            return f"transformer.h.{layer}.attn.c_proj"
        return f"model.layers.{layer}.self_attn.o_proj"

    def cells(self) -> list[tuple[slice, slice]]:
        """The cells of one layer: the positions, and the part of z that belongs to the head."""
        config = self.model.config
        width = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        length = self.clean.shape[1]
        places = [slice(t, t + 1) for t in range(length)] if self.by_position else [slice(length)]
        return [
            (at, slice(head * width, (head + 1) * width))
            for head in range(self.heads)
            for at in places
        ]

    def value(self, logits: Tensor) -> Tensor:
        """The mean metric of (..., prompts, vocabulary) logits of the last token."""
        right, wrong = (logits.gather(-1, t.expand(*logits.shape[:-1], 1)) for t in self.pair)
        return (right - wrong)[..., 0].mean(-1)

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """The right and the wrong token of each prompt: (prompts, 1)."""
        return self.targets[:, :1], self.targets[:, 1:]


def looped_hooks(request: Request, layers: range) -> Tensor:
    """Plain torch hooks, one forward pass a cell."""
    clean = _clean_inputs(request, layers)
    rows = []
    for layer in layers:
        module = request.model.get_submodule(request.writer(layer))
        for cell in request.cells():

            def patch(_: Any, args: tuple[Tensor], cell: Any = cell, layer: int = layer) -> Any:
                z = args[0].clone()
                z[:, *cell] = clean[layer][:, *cell]
                return (z,)

            handle = module.register_forward_pre_hook(patch)
            rows.append(request.value(request.model(request.corrupted).logits[:, -1]))
            handle.remove()
    return torch.stack(rows).view(len(layers), -1)


def batched_hooks(request: Request, layers: range) -> Tensor:
    """Plain torch hooks, all cells of a layer in one forward pass."""
    clean, cells = _clean_inputs(request, layers), request.cells()
    wide = request.corrupted.repeat(len(cells), 1)
    found = []
    for layer in layers:

        def patch(_: Any, args: tuple[Tensor], layer: int = layer) -> tuple[Tensor]:
            z = args[0].clone().unflatten(0, (len(cells), -1))
            for row, cell in zip(z, cells, strict=True):
                row[:, *cell] = clean[layer][:, *cell]
            return (z.flatten(0, 1),)

        module = request.model.get_submodule(request.writer(layer))
        handle = module.register_forward_pre_hook(patch)
        last = request.model(wide, logits_to_keep=1).logits[:, -1]
        handle.remove()
        found.append(request.value(last.unflatten(0, (len(cells), -1))))
    return torch.stack(found)


def _clean_inputs(request: Request, layers: range) -> dict[int, Tensor]:
    """Z of the clean run in each layer."""
    found: dict[int, Tensor] = {}
    handles = [
        request.model.get_submodule(request.writer(layer)).register_forward_pre_hook(
            lambda _, args, layer=layer: found.__setitem__(layer, args[0])
        )
        for layer in layers
    ]
    request.model(request.clean)
    for handle in handles:
        handle.remove()
    return found


def transformer_lens(request: Request, layers: range) -> Tensor:
    """TransformerLens' own sweep: one forward pass a cell, through a bridge."""
    peer: Any = importlib.import_module("transformer_lens.patching")
    peer.tqdm = lambda cells, **_: cells  # its progress bar fills logs with thousands of lines
    bridge = request.wrapped
    _, cache = bridge.run_with_cache(request.clean, names_filter=lambda n: n.endswith("hook_z"))
    kind = "by_pos" if request.by_position else "all_pos"
    sweep = getattr(peer, f"get_act_patch_attn_head_out_{kind}")
    bridge.cfg.n_layers, whole = len(layers), bridge.cfg.n_layers
    values = sweep(bridge, request.corrupted, cache, lambda logits: request.value(logits[:, -1]))
    bridge.cfg.n_layers = whole
    if request.by_position:
        values = values.transpose(1, 2)  # theirs are (layer, position, head)
    return values.flatten(1)


def looped_nnsight(request: Request, layers: range) -> Tensor:
    """nnsight, one trace a cell."""
    model = request.wrapped
    rows = []
    for layer in layers:
        module = _part(model, request.writer(layer))
        with model.trace(request.clean):
            clean = module.input.clone().save()
        for cell in request.cells():
            with model.trace(request.corrupted):
                module.input[:, *cell] = clean[:, *cell]
                last = model.lm_head.output[:, -1].save()
            rows.append(request.value(last))
    return torch.stack(rows).view(len(layers), -1)


def batched_nnsight(request: Request, layers: range) -> Tensor:
    """nnsight, all cells of a layer in one trace."""
    model = request.wrapped
    cells, n, found = request.cells(), len(request.corrupted), []
    wide = request.corrupted.repeat(len(cells), 1)
    for layer in layers:
        module = _part(model, request.writer(layer))
        with model.trace(request.clean):
            clean = module.input.clone().save()
        with model.trace(wide, logits_to_keep=1):
            for row, cell in enumerate(cells):
                module.input[row * n : (row + 1) * n, *cell] = clean[:, *cell]
            last = model.lm_head.output[:, -1].save()
        found.append(request.value(last.unflatten(0, (len(cells), -1))))
    return torch.stack(found)


def _part(model: Any, name: str) -> Any:
    """A submodule, by names and numbers, of a model wrapped by nnsight."""
    for word in name.split("."):
        model = model[int(word)] if word.isdigit() else getattr(model, word)
    return model


def pyvene(request: Request, layers: range) -> Tensor:
    """pyvene, one call a cell, which runs the clean and the corrupted prompts."""
    peer = importlib.import_module("pyvene")
    n, length = request.clean.shape
    places = [[t] for t in range(length)] if request.by_position else [list(range(length))]
    rows = []
    for layer in layers:
        site = {
            "layer": layer,
            "component": "head_attention_value_output",
            "unit": "h.pos",
            "max_number_of_units": len(places[0]),
        }
        config = peer.IntervenableConfig([site], intervention_types=peer.VanillaIntervention)
        model = peer.IntervenableModel(config, model=request.model)
        for head in range(request.heads):
            for place in places:
                at = [[[[head]] * n, [place] * n]]
                _, changed = model(
                    {"input_ids": request.corrupted},
                    [{"input_ids": request.clean}],
                    {"sources->base": (at, at)},
                )
                rows.append(request.value(changed.logits[:, -1]))
    return torch.stack(rows).view(len(layers), -1)


def _bridge(model: Any) -> Any:
    from interp.models.bridge import build_bridge

    return build_bridge(model)


def _nnsight(model: Any) -> Any:
    return importlib.import_module("nnsight").NNsight(model)


@dataclass(frozen=True)
class Peer:
    """A sweep, the package that it needs, and how that wraps a model (which is not timed)."""

    sweep: Callable[[Request, range], Tensor]
    package: str
    wrap: Callable[[Any], Any] = lambda model: model


PEERS = {
    "hooks-looped": Peer(looped_hooks, "torch"),
    "hooks-batched": Peer(batched_hooks, "torch"),
    "transformer-lens": Peer(transformer_lens, "transformer-lens", _bridge),
    "nnsight-looped": Peer(looped_nnsight, "nnsight", _nnsight),
    "nnsight-batched": Peer(batched_nnsight, "nnsight", _nnsight),
    "pyvene": Peer(pyvene, "pyvene"),
}
"""Every way to sweep. Each gives the values of all cells of some layers: (layers, cells)."""


def read_request(folder: Path, peer: Peer) -> Request:
    """What the folder asks of a peer."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder / "model", attn_implementation="eager", dtype=torch.float32
    )
    return Request(
        model=model.eval(),
        wrapped=peer.wrap(model),
        by_position=json.loads((folder / "request.json").read_text())["by_position"],
        **load_file(folder / "data.safetensors"),
    )


def main(name: str, folder: Path) -> None:
    """Run a peer: the first layer to warm up, then all layers."""
    torch.set_num_threads(1)
    peer = PEERS[name]
    request = read_request(folder, peer)
    with torch.no_grad():
        peer.sweep(request, request.layers[:1])
        values, measured = repeat(lambda: peer.sweep(request, request.layers))
    heads = request.heads
    shape = (len(values), heads, -1) if request.by_position else (len(values), heads)
    save_file({"values": values.reshape(shape).contiguous()}, folder / "values.safetensors")
    packages = dict.fromkeys(("torch", "transformers", peer.package))
    content = {**measured, "versions": {package: version(package) for package in packages}}
    (folder / "measured.json").write_text(json.dumps(content, allow_nan=False), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
