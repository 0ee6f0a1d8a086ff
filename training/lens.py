"""Fit the Jacobian lens that ships: the default model, eight layers, in-house passages.

    python training/lens.py --texts 26          # can be resumed; more texts go on from fewer

It takes about 22 CPU-seconds a text.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from interp.core.corpus import shipped_passages
from interp.core.files import write_atomically
from interp.models.loading import load_model
from interp.probing.jacobian_lens import fit_jacobian_lens
from interp.probing.lens_files import SHIPPED, CompactLens

MODEL = "smollm2-135m-instruct"
LAYERS = tuple(range(14, 29, 2))
FITTED_ON = 72
"""Passages for the fit; the others are for tests of the lens."""

CARD = """\
# {name}

A Jacobian lens of `{model}`, whose weights must have the hash `{hash}`:
`interp.probing.shipped_lens(model)`. `python training/lens.py --texts {n}` made it.

| | |
|---|---|
| layers | {layers}, at resid_post |
| corpus | {corpus} |
| positions | from token {skip} of a text to the last but one |
| numbers | the mean and half of the difference of both halves, one byte each with a step per row |
| file | {size:.1f} MB |

J is the mean over texts and positions t of the sum over later positions t' of
d h_last[t'] / d h_layer[t] (Gurnee et al. 2026). Even and odd texts were also fitted apart.
Their difference beside the lens minus the identity, |A - B| / |J - 1|, and the error of the file
beside that difference:

| layer | halves disagree | file |
|---|---|---|
{rows}

The lens itself is off by about half of the disagreement. `docs/findings/lenses.md` says what it
reads, beside its controls.
"""


def pairs_of_passages() -> list[str]:
    """36 texts of two passages each."""
    some = shipped_passages()[:FITTED_ON]
    return [f"{a} {b}" for a, b in zip(some[::2], some[1::2], strict=True)]


def main() -> None:
    """Fit the lens, write it and its card."""
    parser = argparse.ArgumentParser(description="Fit the Jacobian lens that ships.")
    parser.add_argument("--texts", type=int, default=26, help="texts of two passages, at most 36")
    texts = pairs_of_passages()[: parser.parse_args().texts]
    model = load_model(MODEL)
    maps = fit_jacobian_lens(
        model,
        texts,
        layers=list(LAYERS),
        corpus=f"{len(texts)} texts of two in-house passages (interp.core.shipped_passages)",
        keep=True,
        progress=lambda done, total: print(f"{done} of {total} texts", flush=True),
    )
    folder = SHIPPED / "lens-smollm2"
    path = CompactLens.of(maps).save(folder / "lens")
    back = CompactLens.load(path).maps
    apart, off = (
        (a - b).flatten(1).norm(dim=1)
        for a, b in ((maps.half(0).matrices, maps.half(1).matrices), (maps.matrices, back.matrices))
    )
    rows = [
        f"| {layer} | {share:.2f} | {float(wrong / whole):.3f} |"
        for layer, share, wrong, whole in zip(
            maps.layers, maps.disagreement, off, apart, strict=True
        )
    ]
    card = CARD.format(
        name=folder.name,
        model=model.name,
        hash=model.hash,
        n=len(texts),
        layers=", ".join(map(str, maps.layers)),
        corpus=maps.corpus,
        skip=maps.options["skip"],
        size=path.stat().st_size / 1e6,
        rows="\n".join(rows),
    )
    write_atomically(folder / "README.md", lambda place: place.write_text(card))
    print(card)


if __name__ == "__main__":
    main()
