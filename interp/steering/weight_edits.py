"""A direction removed from the weights, as `ablate_direction` removes it from the states."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from interp.core.arguments import reads_arguments
from interp.core.errors import InterpError
from interp.engine.architecture import Decoder, Linear, Norm
from interp.models.families import read_architecture
from interp.models.language_model import LanguageModel
from interp.models.loading import unwrapped, wrap
from interp.results.direction import Direction

READS = re.compile(r"gate|up_|router|\bw1\b|\bw3\b")
"""Names of the parts of experts that read the stream and do not write to it."""


@dataclass(frozen=True, kw_only=True)
class WeightEdit:
    """An edited copy of a model.

    Attributes:
        model: the copy. It has another hash, so it refuses directions of the original model.
        edited: the writers from which the direction was removed.
        kept: the parts that were not edited, and why.
        residue: largest |r . W'| over the edited writers, each relative to the length of its
            largest row: 0 up to rounding.
        exact: whether the copy computes what `ablate_direction` computes, up to rounding.
    """

    model: LanguageModel
    edited: tuple[str, ...]
    kept: dict[str, str]
    residue: float
    exact: bool


@dataclass(frozen=True, kw_only=True)
class _Writer:
    """A matrix whose rows are added to the residual stream, after a gain where there is one."""

    name: str
    rows: Tensor
    gain: Tensor | None = None

    def remove(self, unit: Tensor) -> float:
        """Edit in place; returns the largest |r . W'| relative to the largest row."""
        normal = unit if self.gain is None else unit * self.gain.to(unit)
        normal = normal / normal.norm()
        wide = self.rows.double()
        left = wide - (wide @ normal)[..., None] * normal
        self.rows.copy_(left.to(self.rows.dtype))
        size = wide.norm(dim=-1).max().clamp(min=1e-300)
        return float((self.rows.double() @ normal).abs().max() / size)


@reads_arguments
def orthogonalise_weights(
    model: LanguageModel, direction: Direction, *, post_norms: str = "refuse"
) -> WeightEdit:
    """W' = W - r r^T W for everything that writes to the residual stream, biases included.

    Without post-norms the copy equals `ablate_direction` on all sites. Two things differ from the
    released code of arXiv 2406.11717, which edits embedding, attention output and MLP output. Their
    biases and the position embeddings are edited too. A tied unembedding is untied first and not
    edited, because it reads the stream after the final norm's gain.

    A post-norm multiplies a module's output by a gain g. With "fold" the module's output is made
    orthogonal to g * r, so nothing along r is added. But the norm then rescales the rest, and the
    copy is not the ablated model.

    Args:
        model: a model of a known family.
        direction: r; its length and sign do not matter.
        post_norms: "refuse" or "fold".

    Raises:
        InterpError: a family whose writers are not known, such as mixtures of experts (the message
            names all their writers), a norm behind the embedding (BLOOM), or post-norms under
            "refuse".
    """
    direction.require_model(model)
    _require_known(model)
    if post_norms not in ("refuse", "fold") or (model.post_norms and post_norms == "refuse"):
        raise InterpError(
            f"orthogonalising the weights of {model.name}",
            f"it has post-norms, whose gains bring the direction back; post_norms={post_norms!r}",
            "use ablate_direction, which is exact, or post_norms='fold'",
        )
    copy, kept = unwrapped(model), {}
    if _untie(copy):
        kept["unembedding"] = "untied and kept: it reads the stream behind the final norm's gain"
    else:
        kept["unembedding"] = "it reads the stream"
    unit, decoder = direction.unit, read_architecture(copy)
    with torch.no_grad():
        writers = _writers(copy, decoder)
        residue = max(writer.remove(unit.to(model.device)) for writer in writers)
        some = torch.arange(min(8, decoder.d_vocab), device=model.device)
        entering = decoder.embed(some, some).double()
        if (entering @ unit.to(entering)).abs().max() > 0.01 * entering.norm(dim=-1).max():
            raise InterpError(
                f"orthogonalising the weights of {model.name}",
                "a norm behind the embedding brings the direction back",
                "use ablate_direction, which edits the stream itself",
            )
    if model.post_norms:
        kept["post-norm gains"] = "folded into the modules before them; their rescaling remains"
    return WeightEdit(
        model=wrap(copy, model.tokenizer, name=f"{model.name} without {direction}"),
        edited=tuple(writer.name for writer in writers),
        kept=kept,
        residue=residue,
        exact=not model.post_norms,
    )


def _writers(hf_model: nn.Module, decoder: Decoder) -> list[_Writer]:
    tables = [
        module
        for module in hf_model.modules()
        if isinstance(module, nn.Embedding) and module.embedding_dim == decoder.d_model
    ]
    found = [
        _Writer(name=f"embedding {number}", rows=table.weight.data)
        for number, table in enumerate(tables)
    ]
    for layer, block in enumerate(decoder.blocks):
        for name, module, norm in (
            ("attention output", block.attn.o, block.ln1_post),
            ("MLP output", block.neurons.down, block.ln2_post),
        ):
            gain = norm.weight if isinstance(norm, Norm) else None
            found += _parts(f"L{layer} {name}", module, gain)
    return found


def _parts(name: str, module: Linear, gain: Tensor | None) -> list[_Writer]:
    parts = [_Writer(name=name, rows=module.weight, gain=gain)]
    if module.bias is not None:
        parts.append(_Writer(name=f"{name} bias", rows=module.bias[None], gain=gain))
    return parts


def _untie(hf_model: nn.Module) -> bool:
    """Give a tied unembedding weights of its own; whether it was tied."""
    output, table = hf_model.get_output_embeddings(), hf_model.get_input_embeddings()  # type: ignore[operator]
    if output.weight.data_ptr() != table.weight.data_ptr():
        return False
    output.weight = nn.Parameter(table.weight.detach().clone(), requires_grad=False)
    hf_model.config.tie_word_embeddings = False  # type: ignore[union-attr]
    return True


def expert_writers(model: LanguageModel) -> tuple[str, ...]:
    """Checkpoint names of the tensors with which experts write to the residual stream.

    These are the tensors of modules called experts with an axis as wide as the stream, except for
    gates, routers and projections into the expert. Empty for a model without experts.
    """
    found: dict[tuple[int, torch.Size], str] = {}
    for name, tensor in model.hf_model.state_dict().items():
        clean = name.replace("._original_component", "")
        inside = clean.partition("expert")[2]
        if inside and not READS.search(inside) and model.d_model in tensor.shape[-2:]:
            found.setdefault((tensor.data_ptr(), tensor.shape), clean)  # a bridge has each twice
    return tuple(found.values())


def _folded(names: Sequence[str]) -> str:
    """All names in one line; names that differ only in their numbers become complete ranges."""
    patterns: dict[str, list[tuple[int, ...]]] = {}
    for name in names:
        numbers = tuple(map(int, re.findall(r"\d+", name)))
        patterns.setdefault(re.sub(r"\d+", "{}", name), []).append(numbers)
    lines = []
    for pattern, found in patterns.items():
        spans = [range(min(column), max(column) + 1) for column in zip(*found, strict=True)]
        if sorted(found) == list(product(*spans)):
            shown = [f"{span[0]}-{span[-1]}" if len(span) > 1 else f"{span[0]}" for span in spans]
            lines.append(pattern.format(*shown))
        else:
            lines += [pattern.format(*numbers) for numbers in found]
    return ", ".join(lines)


def _require_known(model: LanguageModel) -> None:
    experts = expert_writers(model)
    if model.decoder is not None and not experts:
        return
    named = f", {len(experts)} of experts among them: {_folded(experts)}" if experts else ""
    why = model.engine_reason or "it is a mixture of experts"
    raise InterpError(
        f"orthogonalising the weights of {model.name}",
        f"{why}; its writers are not known{named}",
        "use ablate_direction, which edits the stream itself",
    )
