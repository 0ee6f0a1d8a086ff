"""A change of a model's weights as an object: its name, its base, and the difference."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial, reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.core.errors import InterpError
from interp.core.files import canonical_json
from interp.core.records import Record
from interp.models import registry
from interp.models.checkpoints import attach_adapter
from interp.models.language_model import LanguageModel
from interp.models.loading import fast_engine, plain_hash, plain_view

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_HASHES: dict[tuple[str, str, int], str] = {}


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """scale * left @ right: (rows, rank) times (rank, columns), as a LoRA adapter stores it."""

    left: Tensor
    right: Tensor
    scale: float = 1.0

    def matrix(self) -> Tensor:
        """(rows, columns), in the dtype of its factors."""
        return (self.left @ self.right).mul_(self.scale)


@dataclass(frozen=True, kw_only=True)
class WeightDelta(Record):
    """A named change of a model's weights: W' = W + difference, tensor by tensor.

    Deltas of one base are added, subtracted and multiplied by numbers. They say nothing about what
    a model does: measure that inside `applied`.

    Attributes:
        name: what the change is.
        base: hash of the model that it changes.
        low_rank: summands of low rank, by the name of the tensor in the Hugging Face model.
        dense: summands as large as the tensor, by the same names.
        card: how it was made, in words.

    Raises:
        InterpError: it holds numbers that are not finite.

    Source: Ilharco et al. 2023, arXiv 2212.04089 (differences of weights as vectors).
    """

    name: str
    base: str
    low_rank: Mapping[str, tuple[LowRank, ...]] = field(default_factory=dict)
    dense: Mapping[str, Tensor] = field(default_factory=dict)
    card: str = ""

    def __post_init__(self) -> None:
        held = [(name, tensor) for name, tensor in self.dense.items()]
        for name, parts in self.low_rank.items():
            held += [(name, tensor) for part in parts for tensor in (part.left, part.right)]
            held += [(name, torch.tensor(part.scale)) for part in parts]
        for name, tensor in held:
            if not bool(torch.isfinite(tensor).all()):
                raise InterpError(
                    f"the weight delta {self.name}",
                    f"its change of {name} holds NaN or infinity",
                    "make it again from finite weights",
                )

    def __repr__(self) -> str:
        ranks = [sum(len(x.right) for x in parts) for parts in self.low_rank.values()]
        kinds = [f"{len(ranks)} of rank {max(ranks)} at most"] if ranks else []
        kinds += [f"{len(self.dense)} dense"] if self.dense else []
        changed = " and ".join(kinds) or "none"
        return f"WeightDelta({self.name!r}, changed tensors: {changed}, base {self.base[:12]})"

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors that it changes, in alphabetical order."""
        return tuple(sorted({*self.low_rank, *self.dense}))

    @cached_property
    def hash(self) -> str:
        """sha256 of the base and of all numbers; the name and the card do not count."""
        parts = {
            name: [(len(x.right), x.scale) for x in self.low_rank.get(name, ())]
            for name in self.names
        }
        digest = hashlib.sha256(canonical_json([self.base, parts]).encode())
        for name in self.names:
            for part in self.low_rank.get(name, ()):
                _digest(digest, part.left)
                _digest(digest, part.right)
            if name in self.dense:
                _digest(digest, self.dense[name])
        return digest.hexdigest()

    def difference(self, name: str) -> Tensor:
        """What is added to a tensor, in float64.

        Raises:
            InterpError: the delta does not change this tensor.
        """
        found = [part.matrix().double() for part in self.low_rank.get(name, ())]
        found += [self.dense[name].double()] if name in self.dense else []
        if not found:
            do = f"give one of its {len(self.names)} tensors, such as {self.names[:1]}"
            raise InterpError(f"the change of {name!r}", f"{self.name} does not change it", do)
        return torch.stack(found).sum(0)

    # -- arithmetic ------------------------------------------------------------------------

    def __add__(self, other: WeightDelta) -> WeightDelta:
        self.require_base(other.base, other.name)
        low = {
            name: self.low_rank.get(name, ()) + other.low_rank.get(name, ())
            for name in {**self.low_rank, **other.low_rank}
        }
        dense = dict(self.dense)
        for name, tensor in other.dense.items():
            dense[name] = dense[name].double() + tensor.double() if name in dense else tensor
        return WeightDelta(
            name=f"{self.name} + {other.name}",
            base=self.base,
            low_rank=low,
            dense=dense,
            card="\n\n".join(filter(None, (self.card, other.card))),
        )

    def __mul__(self, factor: float) -> WeightDelta:
        if not math.isfinite(factor):
            raise InterpError(f"{factor} times {self.name}", "not a number", "give a finite one")
        low = {
            name: tuple(replace(part, scale=part.scale * factor) for part in parts)
            for name, parts in self.low_rank.items()
        }
        dense = {name: tensor * factor for name, tensor in self.dense.items()}
        return replace(self, name=f"{factor:g} ({self.name})", low_rank=low, dense=dense)

    __rmul__ = __mul__

    def __neg__(self) -> WeightDelta:
        return replace(-1.0 * self, name=f"- ({self.name})")

    def __sub__(self, other: WeightDelta) -> WeightDelta:
        return replace(self + -other, name=f"{self.name} - ({other.name})")

    def only(self, keep: Callable[[str], bool], name: str) -> WeightDelta:
        """The part of it that changes the tensors for which `keep(tensor's name)` is true."""
        low, dense = (
            {key: value for key, value in held.items() if keep(key)}
            for held in (self.low_rank, self.dense)
        )
        return replace(self, name=name, low_rank=low, dense=dense)

    # -- on a model ------------------------------------------------------------------------

    def require_base(self, base: str, name: str) -> None:
        """Refuse a model, or another delta's base, with other weights than this delta's base."""
        if base != self.base:
            raise InterpError(
                f"the weight delta {self.name} on {name}",
                f"its base is {self.base[:16]}, not {base[:16]}",
                "load the base it was made for with the same dtype; add deltas, do not nest them",
            )

    @contextmanager
    def applied(self, model: LanguageModel) -> Iterator[LanguageModel]:
        """Change the model's weights inside the block; afterwards they have their old bits.

        Inside, the model has the name and the hash of the changed weights, so that results of base
        and changed model are never mixed up. The fast engine and TransformerLens' hooks read the
        changed weights. The model's lock is held, but the fast engine does not wait for it: no
        other thread may run this model meanwhile.

        Changed tensors are kept aside, those of low rank as bit differences of one byte a number.
        An error inside the block, or while the weights are changed, leaves the model as it was.

        Raises:
            InterpError: another base, a tensor that the model does not have or of another shape,
                or a call inside `intervene`.
        """
        with model.lock, ExitStack() as undo:
            model.refuse_changed(f"the weight delta {self.name}")
            self.require_base(model.hash, model.name)
            view = plain_view(model)
            held = dict(view.named_parameters())
            self._require_shapes(held)
            for name in self.names:
                tensor = held[name].data
                low, dense = self.low_rank.get(name, ()), self.dense.get(name)
                if dense is None:
                    _add_low_rank(tensor, low, undo)
                else:
                    undo.callback(tensor.copy_, tensor.clone())
                    tensor.copy_(tensor.double() + self.difference(name).to(tensor.device))
            fields = ("name", "hash", "hf_model", "decoder", "engine_reason", "_bridge")
            before = {name: getattr(model, name) for name in fields}
            undo.callback(vars(model).update, before)
            model.name = f"{model.name} + {self.name}"
            model.hash = self._changed_hash(view, str(model.device))
            model.hf_model = view
            if model.decoder is not None:
                model.decoder, model.engine_reason = fast_engine(view)
            model.keep_bridge(None)
            yield model

    def _changed_hash(self, view: Any, device: str) -> str:
        """The hash of a model that this delta has changed, computed once for deltas of low rank.

        Their products have the same bits on one device with one number of threads.
        """
        if self.dense:
            return plain_hash(view)
        key = self.hash, device, torch.get_num_threads()
        if key not in _HASHES:
            _HASHES[key] = plain_hash(view)
        return _HASHES[key]

    def _require_shapes(self, held: Mapping[str, Tensor]) -> None:
        """Refuse tensors that the model does not have, or that have another shape there."""
        for name in self.names:
            shapes = [(len(x.left), x.right.shape[1]) for x in self.low_rank.get(name, ())]
            shapes += [tuple(self.dense[name].shape)] if name in self.dense else []
            found = tuple(held[name].shape) if name in held else "no tensor of this name"
            if any(shape != found for shape in shapes):
                raise InterpError(
                    f"the change of {name} by {self.name}",
                    f"it has shape {shapes}, the model {found}",
                    "make the delta from this model",
                )

    @classmethod
    def between(cls, base: LanguageModel, changed: LanguageModel, name: str = "") -> WeightDelta:
        """The difference of two models of one architecture: applied to the base it gives the other.

        Differences are float32 where that gives the changed weights to the bit, else float64.

        Raises:
            InterpError: the models differ in tensors, shapes or dtype.
        """
        require_alike(base, changed)
        ours, theirs = (dict(plain_view(model).named_parameters()) for model in (base, changed))
        dense = {}
        for key, old in ours.items():
            new = theirs[key].to(old.device)
            if not torch.equal(old, new):
                exact = new.double() - old.double()
                short = exact.float()
                back = (old.double() + short.double()).to(old.dtype)
                dense[key] = short if torch.equal(back, new) else exact
        return cls(name=name or f"{changed.name} - {base.name}", base=base.hash, dense=dense)


def require_alike(base: LanguageModel, changed: LanguageModel) -> None:
    """Refuse two models whose weights have no difference tensor by tensor.

    Raises:
        InterpError: the models differ in tensors, shapes or dtype.
    """
    ours, theirs = (
        {key: (x.shape, x.dtype) for key, x in plain_view(model).named_parameters()}
        for model in (base, changed)
    )
    apart = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    if apart:
        raise InterpError(
            f"the difference of {base.name} and {changed.name}",
            f"{len(apart)} tensors are absent or unlike, such as {apart[0]}",
            "give two models of one architecture, loaded with one dtype",
        )


def load_delta(source: str | Path, model: LanguageModel) -> WeightDelta:
    """The weight delta of a shipped organism, of a LoRA adapter's folder, or of a saved file.

    Args:
        source: the name of an organism that is an adapter, such as "countdown-smollm2"; a folder
            that peft's `save_pretrained` wrote; or a file that `WeightDelta.save` wrote.
        model: the base.

    Raises:
        InterpError: there is no such adapter or file, it is damaged, it belongs to another base,
            or it is not plain LoRA.
    """
    folder = registry.organisms().get(str(source))
    if folder is None and not Path(source).is_dir():
        delta = WeightDelta.load(source)
        delta.require_base(model.hash, model.name)
        return delta
    about = registry.describe(folder) if folder is not None else {"base_hash": model.hash}
    if folder is not None and about["base"] is None:
        do = f"load_model({str(source)!r}); WeightDelta.between gives the difference of two models"
        raise InterpError(f"the weight delta {source}", "it is a whole model, without a base", do)
    place = folder or Path(source)
    adapted = attach_adapter(plain_view(model), place)
    found = WeightDelta(
        name=place.name,
        base=about["base_hash"],
        low_rank=_lora_parts(adapted, place.name),
        card=registry.card(folder) if folder is not None else "",
    )
    found.require_base(model.hash, model.name)
    return found


def _lora_parts(adapted: Any, name: str) -> dict[str, tuple[LowRank, ...]]:
    """The factors of a LoRA adapter that is attached to a model, by the changed tensor."""
    from peft.tuners.lora import LoraLayer

    found, active = {}, adapted.active_adapter
    settings = adapted.peft_config[active]
    if settings.use_dora or settings.bias != "none" or settings.modules_to_save:
        kind = "DoRA" if settings.use_dora else "biases or whole modules beside LoRA"
        do = "merge it and take WeightDelta.between(base, merged)"
        raise InterpError(f"the adapter {name} as a weight delta", f"it holds {kind}", do)
    modules: Iterable[tuple[str, Any]] = adapted.base_model.model.named_modules()
    for path, layer in modules:
        if issubclass(type(layer), LoraLayer) and active in layer.lora_A:
            factors = layer.lora_B[active], layer.lora_A[active]
            left, right = (factor.weight.detach() for factor in factors)
            if layer.fan_in_fan_out:
                left, right = right.T, left.T
            scale = float(layer.scaling[active])
            found[f"{path}.weight"] = (LowRank(left=left, right=right, scale=scale),)
    if not found:
        raise InterpError(f"the adapter {name}", "it changes no linear map", "give a LoRA adapter")
    return found


def _add_low_rank(tensor: Tensor, parts: tuple[LowRank, ...], undo: ExitStack) -> None:
    """Add products of low rank in place, as peft merges them.

    What undoes it are the products again and the rounding errors of adding and subtracting, as
    differences of bit patterns; the few that do not fit a byte are kept as values.
    """

    def product() -> Tensor:
        return reduce(Tensor.add_, (part.matrix() for part in parts)).to(tensor)

    old = tensor.clone()
    way_back: list[Callable[[], object]] = [
        partial(tensor.copy_, old)
    ]  # replaced below by what needs less memory
    undo.callback(lambda: way_back[0]())
    added = product()
    tensor += added
    apart = _bits(torch.sub(tensor, added, out=added))
    torch.sub(_bits(old), apart, out=apart)
    byte = apart.to(torch.int8)
    where = (byte != apart).nonzero(as_tuple=True)
    way_back[0] = partial(_subtract, tensor, product, byte, where, old[where], _checksum(old))


def _subtract(
    tensor: Tensor,
    product: Callable[[], Tensor],
    byte: Tensor,
    where: tuple[Tensor, ...],
    values: Tensor,
    checksum: int,
) -> None:
    """Undo `_add_low_rank`; the old numbers, whose checksum is given, must come back."""
    added = product()
    back = _bits(torch.sub(tensor, added, out=added))
    torch.add(back, byte, out=_bits(tensor))
    tensor[where] = values
    if _checksum(tensor) != checksum:
        raise InterpError(
            "taking a weight delta off",
            "a product came out with other bits than before",
            "load the model again",
        )


def _checksum(tensor: Tensor) -> int:
    """The sum of the bit patterns, modulo 2 to the power of 32 or 64."""
    bits = _bits(tensor)
    return int(bits.sum(dtype=torch.int64 if bits.dtype == torch.int64 else torch.int32))


def _bits(tensor: Tensor) -> Tensor:
    """The bit patterns of numbers, as integers of their size."""
    return tensor.view(_BITS[tensor.element_size()])


def _digest(digest: Any, tensor: Tensor) -> None:
    digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
