"""Directions in the residual stream: a vector, and what is known about its origin.

Papers call five different vectors "the refusal direction". A `Direction` says which one it is,
where and from what it was read, and which way it points. Steering refuses a direction that does not
fit the model or the prompts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from interp.core.arguments import listed, reads_arguments
from interp.core.chat_prompts import PLAIN, ChatFormat, ChatPrompts
from interp.core.errors import InterpError, unknown
from interp.core.files import cache_dir, content_key
from interp.core.records import Record
from interp.core.schema import Brief
from interp.models.language_model import LanguageModel

DirectionKind = Literal[
    "harmful-harmless", "behaviour", "over-refusal", "false-refusal", "refused-invented", "task",
    "contrast",
]  # fmt: skip
"""Which difference of means it is.

harmful-harmless: harmful minus harmless requests (arXiv 2406.11717).
behaviour: harmful and refused minus harmless and answered (arXiv 2603.27518).
over-refusal: benign and refused minus benign and answered (arXiv 2603.27518).
false-refusal: pseudo-harmful minus harmless, orthogonal to harmful-harmless (arXiv 2410.03415).
refused-invented: requests that are refused minus requests of the same kind that get an invented
answer.
task: answered minus refused prompts of one task (arXiv 2508.11290). It is the only one that points
towards compliance.
contrast: any prompts minus other prompts, which need not have to do with refusal.
"""

KINDS: tuple[DirectionKind, ...] = get_args(DirectionKind)

Normalisation = Literal["none", "unit"]

STUDY_FILE = "directions.safetensors"
"""The file of a study's chosen directions, in the folder of its steps."""


@dataclass(frozen=True, kw_only=True)
class Direction(Brief):
    """A direction and its origin.

    Attributes:
        vector: (d_model,) float64.
        kind: which difference of means it is.
        site, layer: the site and layer it was read from.
        position: the token it was read at, counted from the end of the prompt: -1 is the last.
        token: the text of that token, if it is the same in every prompt.
        sign: +1 if the vector points towards refusal, -1 towards compliance.
        format: the chat format of the prompts it was read from.
        n: number of prompts of the first and of the second class.
        model_hash: hash of the model it was read from.
        made: how it was made, in words.
        normalisation: "none" for the raw difference, "unit" if divided by its length.
        rows: hashes of the prompts it was read from (`ChatPrompts.hashes`); () if unknown.

    Raises:
        InterpError: the kind or normalisation is unknown, the vector is not finite, not float64 or
            not (d_model,), the sign is not 1 or -1, or a "unit" vector is not of length 1.
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
                "give a vector of finite float64 numbers, and a sign of 1 or -1",
            )
        if self.normalisation == "unit" and abs(self.norm - 1) > 1e-6:
            raise InterpError(
                f"unit direction {self}", f"length {self.norm:g}", "divide by the length"
            )

    def __str__(self) -> str:
        return f"{self.kind} L{self.layer}.{self.site} at {self.position}"

    def __repr__(self) -> str:
        return f"Direction({self}, length {self.norm:z.3g}, n={self.n}, {self.made})"

    def _repr_html_(self) -> str:
        """For a notebook: the line, and where it comes from."""
        from pandas import DataFrame

        told = {
            "read at": f"L{self.layer}.{self.site}, token {self.position}",
            "that token": repr(self.token) if self.token else "not the same in all prompts",
            "prompts": f"{self.n[0]} and {self.n[1]}",
            "made": self.made,
            "length": f"{self.norm:z.4g} of {len(self.vector)} numbers",
            "sign towards refusal": f"{self.sign:+d}",
            "model": self.model_hash[:12],
        }
        table = DataFrame(told.items()).to_html(index=False, header=False, border=0)
        return f"<p>{escape(repr(self))}</p>{table}"

    @property
    def norm(self) -> float:
        """The length of the vector."""
        return float(self.vector.norm())

    @property
    def towards_refusal(self) -> Tensor:
        """The vector times its sign, so that it points towards refusal for every kind."""
        return self.sign * self.vector

    @property
    def unit(self) -> Tensor:
        """The vector towards refusal, scaled to length 1.

        Raises:
            InterpError: the vector is zero, e.g. at a position where all prompts have the same
                tokens up to there.
        """
        if self.norm == 0:
            raise InterpError(f"direction {self}", "a vector of length 0", "use another position")
        return self.towards_refusal / self.norm

    @property
    def rows_hash(self) -> str:
        """A hash of the set of prompts it was read from; "" if they are unknown."""
        return content_key(sorted(self.rows)) if self.rows else ""

    def require_unseen(self, prompts: ChatPrompts, what: str) -> None:
        """Refuse prompts that the direction was read from, if these are known.

        Raises:
            InterpError: the direction was read from some of the prompts.
        """
        refuse_seen(self.rows, prompts, f"{what} with {self}")

    def require_model(self, model: LanguageModel) -> None:
        """Refuse a model that the direction was not read from.

        Raises:
            InterpError: the model has other weights or another width.
        """
        if self.model_hash != model.hash or len(self.vector) != model.d_model:
            raise InterpError(
                f"direction {self} on {model.name}",
                f"read from {self.model_hash[:12]}, of width {len(self.vector)}; the model is "
                f"{model.hash[:12]}, of width {model.d_model}",
                "read it again from this model, or replace model_hash to transfer it on purpose",
            )


def refuse_seen(rows: Sequence[str], prompts: ChatPrompts, what: str) -> None:
    """Refuse to evaluate on prompts that were used to find what is evaluated.

    `rows` are the hashes of those prompts, as in `ChatPrompts.hashes`.

    Raises:
        InterpError: some of the prompts are among `rows`.
    """
    found = set(listed(rows))
    if seen := [place for place, name in enumerate(prompts.hashes) if name in found]:
        raise InterpError(
            what,
            f"{len(seen)} of {len(prompts)} prompts were used to find it, the first of them is "
            f"number {seen[0]}",
            "evaluate on held-out prompts: split the rows, and drop repeated ones",
        )


def orthogonalise_direction(
    direction: Direction, against: Direction, *, strength: float = 1.0, keep_norm: bool = True
) -> Direction:
    """Remove the part of a direction along another one, w - strength * proj_r(w).

    The result is rescaled to the length of w, or not rescaled if `keep_norm` is False. (arXiv
    2410.03415 rescales to length 1.)

    Raises:
        InterpError: the directions are of different models or formats, or are parallel, so that
            nothing remains.
    """
    asked = f"orthogonalising {direction}"
    direction.format.require(against.format, asked)
    if direction.model_hash != against.model_hash:
        raise InterpError(asked, "they are of two models", "read both from one model")
    unit, vector = against.unit, direction.vector
    left = vector - strength * (vector @ unit) * unit
    if float(left.norm()) <= 1e-12 * direction.norm:
        raise InterpError(asked, f"parallel to {against}", "use another direction")
    if keep_norm:
        left = left * direction.norm / left.norm()
    made = f"{direction.made}, minus {strength:g} times its part along {against}"
    rows = tuple(dict.fromkeys(direction.rows + against.rows))
    kept = direction.normalisation if keep_norm else "none"
    return replace(direction, vector=left, made=made, rows=rows, normalisation=kept)


def orthonormal(vectors: Sequence[Tensor]) -> Tensor:
    """(k, d_model) float64 orthonormal basis of the span of k vectors, by Gram-Schmidt.

    Raises:
        InterpError: there are no vectors, or they are linearly dependent.
    """
    if not len(vectors):
        raise InterpError("a basis", "no directions", "give at least one")
    units = torch.stack([vector.double() / vector.double().norm() for vector in vectors], 1)
    basis, triangle = torch.linalg.qr(units)
    if not bool((triangle.diagonal().abs() > 1e-8).all()):
        raise InterpError(
            f"a basis of {len(vectors)} directions", "they are linearly dependent", "drop one"
        )
    return (basis * triangle.diagonal().sign()).T


def random_direction(direction: Direction, *, seed: int = 0) -> Direction:
    """A random direction of the same length, site and position, as a null for steering."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(len(direction.vector), generator=generator, dtype=torch.float64)
    vector = drawn / drawn.norm() * direction.norm
    return replace(direction, vector=vector, made=f"random, of equal length (seed {seed})")


@dataclass(frozen=True, kw_only=True)
class _Named(Record):
    """A file of directions by name."""

    directions: Mapping[str, Direction]


def save_directions(path: Path, directions: Mapping[str, Direction]) -> Path:
    """Save directions by name, with their origins, in one file.

    Raises:
        InterpError: the file cannot be written.
    """
    return _Named(directions=directions).save(path)


@reads_arguments
def keep_direction(name: str, direction: Direction) -> Path:
    """Keep a direction in the cache, where `kept_directions` finds it; an earlier one is replaced.

    Raises:
        InterpError: a name of other signs than letters, digits, - and _, or it cannot be written.
    """
    if not re.fullmatch(r"[\w-]{1,60}", name):
        raise InterpError(f"the direction {name!r:.80}", "not a name", "write it as my-mood")
    return save_directions(cache_dir() / "directions" / name, {name: direction})


def kept_directions(model: LanguageModel) -> dict[str, Direction]:
    """The directions in the cache that were read from a model: kept ones, then those of studies.

    Those of a study are named as its folder and the direction, such as refusal-1f0a/over-refusal.
    Damaged files are left out.
    """
    found: dict[str, Direction] = {}
    for place in ("directions/*.safetensors", f"studies/*/{STUDY_FILE}"):
        for path in sorted(cache_dir().glob(place)):
            with suppress(InterpError):
                before = "" if path.parent.name == "directions" else f"{path.parent.name}/"
                found |= {before + name: one for name, one in load_directions(path).items()}
    return {
        name: one
        for name, one in found.items()
        if one.model_hash == model.hash and len(one.vector) == model.d_model
    }


def load_directions(path: Path) -> dict[str, Direction]:
    """Load the directions that `save_directions` wrote.

    Raises:
        InterpError: the file is missing, of another kind, damaged or changed.
    """
    return dict(_Named.load(path).directions)
