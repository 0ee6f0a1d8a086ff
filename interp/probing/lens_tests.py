"""How well a lens predicts what later layers write, against the controls of a lens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
from torch import Tensor

from interp.core.arguments import reads_arguments, texts_of
from interp.core.errors import InterpError, unknown
from interp.core.positions import Prompt
from interp.core.prompts import Task
from interp.core.run_options import RunKeywords, RunOptions
from interp.core.schema import Whole, checked
from interp.core.statistics import Estimate, mean_estimate, ratio_estimate, widened
from interp.engine.architecture import Decoder
from interp.engine.stopping import stop_if_asked, stoppable
from interp.models.language_model import LanguageModel
from interp.models.unembedding import BLOCK
from interp.plots.tables import Tabled
from interp.probing.lens_maps import LensMaps, lens_controls
from interp.runs.capture import run_with_cache

if TYPE_CHECKING:
    from pandas import DataFrame

MEASURES = {
    "kl": "KL(model || lens), nats",
    "agreement": "share of tokens with the model's likeliest token",
    "explained": "share of later writes that is predicted",
}
"""What is measured, with its unit."""

LOGIT_LENS = "identity"


@dataclass(frozen=True, kw_only=True, eq=False)
class LensPrediction(Tabled):
    """How well a lens and its controls predict the model's output, by layer.

    Attributes:
        kind: the kind of the lens; its row is the first.
        lenses: the names of the lens and its controls.
        layers: the layers.
        kl: (lens, layer, text) the mean over tokens of KL(model || lens), in nats.
        agreement: (lens, layer, text) share of tokens with the same likeliest token.
        gained, written: (lens, layer, text) see `explained`.
        n_tokens: tokens that were read.
    """

    kind: str
    lenses: tuple[str, ...]
    layers: tuple[int, ...]
    kl: np.ndarray
    agreement: np.ndarray
    gained: np.ndarray
    written: np.ndarray
    n_tokens: int

    def __repr__(self) -> str:
        layer = self.layers[len(self.layers) // 2]
        first = self.estimate("kl", layer)
        beside = ""
        if LOGIT_LENS in self.lenses:
            gain = self.gain("kl", layer, LOGIT_LENS)
            beside = (
                f", {gain.mean:+z.2f} [{gain.low:+z.2f}, {gain.high:+z.2f}] from the logit lens"
            )
        return (
            f"LensPrediction({self.kind}, {len(self.layers)} layers, n={self.kl.shape[2]} texts; "
            f"layer {layer}: KL {first.mean:z.2f} nats{beside})"
        )

    def estimate(self, measure: str, layer: int, lens: str | None = None) -> Estimate:
        """A measure of `MEASURES` at a layer, with its interval over texts.

        kl and agreement are means over texts. The third is

            explained = 1 - sum |w - w'|^2 / sum |w|^2,  w = h_last - h_l,  w' = M h_l + b - h_l

        over tokens, with the mean over all tokens subtracted from w and from w', and lengths taken
        as the unembedding reads them: |x|^2 is the variance over the vocabulary of W_U (g * x), g
        the weight of the final norm. It is 0 for the identity, which predicts no write, and may be
        negative.

        Raises:
            InterpError: an unknown measure, layer or lens.
        """
        row, place = self._cell(layer, lens)
        if measure == "explained":
            return ratio_estimate(self.gained[row, place], self.written[row, place])
        return mean_estimate(self._values(measure)[row, place])

    def gain(self, measure: str, layer: int, control: str) -> Estimate:
        """A measure of the lens minus that of a control on the same texts.

        Below 0 is better for kl, above 0 for the others.

        Raises:
            InterpError: an unknown measure, layer or control.
        """
        (row, place), (other, _) = self._cell(layer, None), self._cell(layer, control)
        if measure == "explained":
            gained = self.gained[row, place] - self.gained[other, place]
            return ratio_estimate(gained, self.written[row, place])
        values = self._values(measure)
        return mean_estimate(values[row, place] - values[other, place])

    def to_dataframe(self) -> DataFrame:
        """One row per lens, layer and measure, with 95 % intervals over texts."""
        from pandas import DataFrame

        rows = []
        for lens in self.lenses:
            for layer in self.layers:
                for measure in MEASURES:
                    e = self.estimate(measure, layer, lens)
                    row = {"lens": lens, "layer": layer, "measure": measure, "value": e.mean}
                    rows.append(row | {"low": e.low, "high": e.high, "n": e.n})
        return DataFrame(rows)

    def plot(self, measure: str = "kl") -> Any:
        """A measure over layers, a line for each lens, with 95 % intervals over texts.

        Raises:
            InterpError: an unknown measure.
        """
        from interp.plots.lines import interval_lines

        series = {}
        for lens in self.lenses:
            found = [self.estimate(measure, layer, lens) for layer in self.layers]
            series[lens] = tuple([getattr(e, at) for e in found] for at in ("mean", "low", "high"))
        return interval_lines(
            series,
            x_title="layer",
            y_title=MEASURES[measure],
            x=self.layers,
            controls=[name for name in self.lenses[1:] if name != LOGIT_LENS],
        )

    def _values(self, measure: str) -> np.ndarray:
        if measure not in MEASURES:
            raise unknown("measure of a lens", measure, MEASURES)
        return getattr(self, measure)

    def _cell(self, layer: int, lens: str | None) -> tuple[int, int]:
        lens = self.lenses[0] if lens is None else lens
        if lens not in self.lenses:
            raise unknown("lens", lens, self.lenses)
        if layer not in self.layers:
            raise unknown("lens layer", str(layer), [str(one) for one in self.layers])
        return self.lenses.index(lens), self.layers.index(layer)


@reads_arguments
def lens_prediction(
    model: LanguageModel,
    texts: Task | Prompt | Sequence[Prompt],
    maps: LensMaps,
    *,
    skip: int = 4,
    others: Mapping[str, LensMaps] | None = None,
    **run: Unpack[RunKeywords],
) -> LensPrediction:
    """How well a lens predicts the model's next token and what later layers write.

    Every token of every text from `skip` on is read at every layer of the lens, through the lens
    and the controls of `lens_controls`. See `LensPrediction.estimate` for the measures.

    Args:
        model: the model on which the lens was fitted.
        texts: texts that the lens was not fitted on.
        maps: the lens.
        skip: first tokens that are not read.
        others: further lenses to set beside it, by name, with all its layers.
        run: budget_gb, the memory for the captured residual streams, 2 by default; progress,
            called with (lenses and layers read, in total); cancelled.

    Raises:
        InterpError: a lens of another model, or no text with more than `skip` tokens.
    """
    decoder = model.require_decoder("a lens")
    skip, options = checked(Whole, skip, "skip"), RunOptions(**{"budget_gb": 2.0, **run})
    lenses = {maps.kind: maps, **lens_controls(maps, model), **(others or {})}
    for one in lenses.values():
        one.require_model(model)
        for layer in maps.layers:
            one.place(layer)
    rows = [model.tokenize(text).tokens for text in texts_of(texts)]
    rows = [row for row in rows if len(row) > skip]
    if not rows:
        found = f"no text of more than {skip} tokens"
        raise InterpError("testing a lens", found, "give longer texts, or a smaller skip")
    last = model.n_layers - 1
    with torch.no_grad(), stoppable(options.cancelled):
        seen = run_with_cache(
            model,
            rows,
            sites="resid_post",
            layers=sorted({*maps.layers, last}),
            budget_gb=options.budget_gb,
        )

        def states(layer: int) -> Tensor:
            taken = seen[layer, "resid_post"]
            return torch.cat([taken[i, skip : len(row)] for i, row in enumerate(rows)])

        text = torch.repeat_interleave(torch.tensor([len(row) - skip for row in rows]))
        final, eye = states(last), _Eye.of(decoder)
        parts, total = [], len(lenses) * len(maps.layers)
        for one in lenses.values():
            for layer in maps.layers:
                stop_if_asked()
                before = states(layer)
                mapped = one.apply(layer, before)
                found = [*_outputs(decoder, final, mapped), *_writes(eye, before, final, mapped)]
                parts.append(torch.stack([_per_text(x, text, i) for i, x in enumerate(found)]))
                if options.progress is not None:
                    options.progress(len(parts), total)
    grid = torch.stack(parts).unflatten(0, (len(lenses), len(maps.layers))).numpy()
    kl, agreement, left, written = np.moveaxis(grid, 2, 0)
    return LensPrediction(
        kind=maps.kind,
        lenses=tuple(lenses),
        layers=maps.layers,
        kl=kl,
        agreement=agreement,
        gained=written - left,
        written=written,
        n_tokens=len(text),
    )


@dataclass(frozen=True, kw_only=True)
class _Eye:
    """How the unembedding reads lengths: |x|^2 = x G x."""

    matrix: Tensor

    @classmethod
    def of(cls, decoder: Decoder) -> _Eye:
        rows = widened(decoder.unembed)
        rows = (rows - rows.mean(0)) * decoder.ln_final.weight.to(rows)
        return cls(matrix=(rows.T @ rows).double().cpu() / len(rows))

    def squares(self, x: Tensor) -> Tensor:
        return torch.einsum("nd,nd->n", x @ self.matrix, x)


def _outputs(decoder: Decoder, final: Tensor, mapped: Tensor) -> tuple[Tensor, Tensor]:
    """(token,) KL(model || lens), and whether both have one likeliest token."""
    size, kl, same = max(1, BLOCK // decoder.d_vocab), [], []
    for own, read in zip(final.split(size), mapped.split(size), strict=True):
        p, q = (
            widened(decoder.logits(decoder.ln_final(x.to(decoder.unembed)))).log_softmax(-1)
            for x in (own, read)
        )
        kl.append((p.exp() * (p - q)).sum(-1).double().cpu())
        same.append((p.argmax(-1) == q.argmax(-1)).double().cpu())
    return torch.cat(kl), torch.cat(same)


def _writes(eye: _Eye, before: Tensor, final: Tensor, mapped: Tensor) -> tuple[Tensor, Tensor]:
    """(token,) squared length of the write that is not predicted, and of the write."""
    own, read = (x.cpu().double() - before.cpu().double() for x in (final, mapped))
    own, read = own - own.mean(0), read - read.mean(0)
    return eye.squares(own - read), eye.squares(own)


def _per_text(values: Tensor, text: Tensor, number: int) -> Tensor:
    """(text,) the mean of the first two measures; the sums of the others."""
    count = text.bincount().double()
    total = torch.zeros_like(count).index_add_(0, text, values)
    return total / count if number < 2 else total
