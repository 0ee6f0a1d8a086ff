"""Directions in the residual stream: one vector, and all it must be used with.

Five objects are called "the refusal direction". A `Direction` says which it is, where and on what
it was read, and which way it points; steering refuses one that does not belong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from interp.core.arguments import listed
from interp.core.chat_prompts import PLAIN, ChatFormat, ChatPrompts
from interp.core.errors import InterpError, unknown
from interp.core.files import content_key
from interp.core.records import Record
from interp.core.schema import brief
from interp.models.language_model import LanguageModel

DirectionKind = Literal["harmful-harmless", "behaviour", "over-refusal", "false-refusal", "task"]
"""What is subtracted from what.

harmful-harmless: harmful - harmless requests (arXiv 2406.11717). behaviour: harmful and refused -
harmless and answered; over-refusal: benign and refused - benign and answered (2603.27518).
false-refusal: pseudo-harmful - harmless, orthogonalised to the first (2410.03415). task: answered
- refused rows of one task (2508.11290); the only one that points to compliance.
"""

KINDS: tuple[DirectionKind, ...] = get_args(DirectionKind)

Normalisation = Literal["none", "unit"]


@dataclass(frozen=True, kw_only=True)
class Direction:
    """A vector with its contract.

    Attributes:
        vector: (d_model,) float64.
        kind: which difference it is.
        site, layer: where it was read.
        position: which token, counted from the prompt's end: -1 is the last.
        token: that token's text, where it is the same in every prompt.
        sign: +1 points towards refusal, -1 towards compliance.
        format: the chat template of the prompts it was read from.
        n: prompts of the first and of the second class.
        model_hash: the weights it was read from.
        made: how, in words.
        normalisation: "none", the raw difference, or "unit", divided by its length.
        rows: hashes of the prompts it was read from (`ChatPrompts.hashes`); () where not known.
    """

    vector: Tensor
    kind: DirectionKind
    site: str
    layer: int
    position: int
    sign: int
    n: tuple[int, int]
    model_hash: str
    token: str = ""
    format: ChatFormat = PLAIN
    made: str = "difference in means"
    normalisation: Normalisation = "none"
    rows: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("kind of direction", self.kind, KINDS)
        if self.normalisation not in get_args(Normalisation):
            raise unknown("normalisation", self.normalisation, get_args(Normalisation))
        good = self.vector.dim() == 1 and self.vector.dtype == torch.float64
        if not good or self.sign not in (1, -1) or not bool(self.vector.isfinite().all()):
            raise InterpError(
                f"direction {self}",
                f"{self.vector.dtype} of shape {tuple(self.vector.shape)}, sign {self.sign}",
                "give finite float64 numbers, one per dimension, and a sign of 1 or -1",
            )
        if self.normalisation == "unit" and abs(self.norm - 1) > 1e-6:
            raise InterpError(f"unit direction {self}", f"length {self.norm:g}", "divide by it")

    def __str__(self) -> str:
        return f"{self.kind} L{self.layer}.{self.site} at {self.position}"

    __repr__ = brief

    @property
    def norm(self) -> float:
        """Its length."""
        return float(self.vector.norm())

    @property
    def towards_refusal(self) -> Tensor:
        """The vector times its sign: every kind on one scale."""
        return self.sign * self.vector

    @property
    def unit(self) -> Tensor:
        """The vector towards refusal, of length one.

        Raises:
            InterpError: it is zero, as where a template puts the same token in every prompt.
        """
        if self.norm == 0:
            raise InterpError(f"direction {self}", "a vector of length 0", "take another position")
        return self.towards_refusal / self.norm

    @property
    def rows_hash(self) -> str:
        """One hash of the set of prompts it was read from; "" where they are not known."""
        return content_key(sorted(self.rows)) if self.rows else ""

    def require_unseen(self, prompts: ChatPrompts, what: str) -> None:
        """Refuse prompts it was read from, where these are known.

        Raises:
            InterpError: it was read from some of them.
        """
        refuse_seen(self.rows, prompts, f"{what} with {self}")

    def require_model(self, model: LanguageModel) -> None:
        """Refuse a model it was not read from.

        Raises:
            InterpError: other weights or another width.
        """
        if self.model_hash != model.hash or len(self.vector) != model.d_model:
            raise InterpError(
                f"direction {self} on {model.name}",
                f"read from {self.model_hash[:12]}, of width {len(self.vector)}; the model is "
                f"{model.hash[:12]}, of width {model.d_model}",
                "read it again; to transfer one on purpose, replace its model_hash",
            )


def refuse_seen(rows: Sequence[str], prompts: ChatPrompts, what: str) -> None:
    """Refuse to evaluate on prompts (`ChatPrompts.hashes`) that something was found with.

    Raises:
        InterpError: some of the prompts are among `rows`.
    """
    found = set(listed(rows))
    if seen := [place for place, name in enumerate(prompts.hashes) if name in found]:
        raise InterpError(
            what,
            f"{len(seen)} of {len(prompts)} prompts are among those it was found with, the first "
            f"is number {seen[0]}",
            "evaluate on other prompts: split the rows, and drop repeated ones",
        )


def orthogonalise_direction(
    direction: Direction, against: Direction, *, strength: float = 1.0, keep_norm: bool = True
) -> Direction:
    """Take out the part along another: w - strength * proj_r(w), rescaled to the length of w.

    arXiv 2410.03415 rescales to length one; with `keep_norm` False nothing is rescaled.

    Raises:
        InterpError: directions of different models or formats, or nothing is left.
    """
    direction.format.require(against.format, f"orthogonalising {direction}")
    if direction.model_hash != against.model_hash:
        raise InterpError(f"orthogonalising {direction}", "of two models", "read both from one")
    unit, vector = against.unit, direction.vector
    left = vector - strength * (vector @ unit) * unit
    if float(left.norm()) <= 1e-12 * direction.norm:
        raise InterpError(f"orthogonalising {direction}", f"parallel to {against}", "take others")
    if keep_norm:
        left = left * direction.norm / left.norm()
    made = f"{direction.made}, less {strength:g} times its part along {against}"
    rows = tuple(dict.fromkeys(direction.rows + against.rows))
    unit = "unit" if direction.normalisation == "unit" and keep_norm else "none"
    return replace(direction, vector=left, made=made, rows=rows, normalisation=unit)


def orthonormal(vectors: Sequence[Tensor]) -> Tensor:
    """(k, d_model) float64 Gram-Schmidt basis of the space these vectors span.

    Raises:
        InterpError: none, or one that the others already span.
    """
    if not len(vectors):
        raise InterpError("a basis", "no directions", "give at least one")
    units = torch.stack([vector.double() / vector.double().norm() for vector in vectors], 1)
    basis, triangle = torch.linalg.qr(units)
    if not bool((triangle.diagonal().abs() > 1e-8).all()):
        raise InterpError(f"a basis of {len(vectors)} directions", "they are dependent", "drop one")
    return (basis * triangle.diagonal().sign()).T


def random_direction(direction: Direction, *, seed: int = 0) -> Direction:
    """A random direction of the same length, in the same place: the null of any steering."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(len(direction.vector), generator=generator, dtype=torch.float64)
    vector = drawn / drawn.norm() * direction.norm
    return replace(direction, vector=vector, made=f"random, of equal length (seed {seed})")


@dataclass(frozen=True, kw_only=True)
class _Named(Record):
    """Directions by name, as a file holds them."""

    directions: Mapping[str, Direction]


def save_directions(path: Path, directions: Mapping[str, Direction]) -> Path:
    """Named directions in one file, each with its contract.

    Raises:
        InterpError: the file cannot be written.
    """
    return _Named(directions=directions).save(path)


def load_directions(path: Path) -> dict[str, Direction]:
    """What `save_directions` wrote.

    Raises:
        InterpError: not such a file, or a damaged or changed one.
    """
    return dict(_Named.load(path).directions)
