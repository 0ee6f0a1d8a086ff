"""What a fitted lens reads, beside the readings of its controls."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

from interp.core.arguments import Positions, reads_arguments
from interp.core.positions import Prompt
from interp.core.prompts import Task
from interp.core.run_options import RunKeywords, RunOptions
from interp.core.statistics import Estimate
from interp.models.language_model import LanguageModel
from interp.plots.tables import Tabled
from interp.probing.lens import Lens, lenses_through
from interp.probing.lens_maps import LensMaps, lens_controls
from interp.runs.changed_runs import ChangedRuns
from interp.runs.stored_runs import StoredRuns

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, kw_only=True, eq=False)
class LensReading(Tabled):
    """Next-token probabilities that a fitted lens reads, and those of its controls.

    Attributes:
        kind: the kind of the lens.
        lens: its reading.
        controls: the readings of `lens_controls` by name: "identity" is the logit lens, "shuffled
            layers" has the map of another layer at each layer, and "half 1" and "half 2" were
            fitted on half of the corpus each.
    """

    kind: str
    lens: Lens
    controls: Mapping[str, Lens]

    def __repr__(self) -> str:
        beside = ", ".join(self.controls) or "no controls"
        return f"LensReading({self.kind} beside {beside}: {self.lens!r})"

    @property
    def readings(self) -> dict[str, Lens]:
        """The lens by its kind, and the controls by their names."""
        return {self.kind: self.lens, **self.controls}

    def _shown(self) -> DataFrame:
        return self.lens._shown()

    def to_dataframe(self) -> DataFrame:
        """The tables of all readings, with the name of each in the column `lens`."""
        from pandas import concat

        tables = [one.to_dataframe().assign(lens=name) for name, one in self.readings.items()]
        return concat(tables, ignore_index=True)

    def words_to_dataframe(self) -> DataFrame:
        """One row per reading, layer, group and watched word, with 95 % intervals."""
        from pandas import concat

        tables = [one.words_to_dataframe().assign(lens=n) for n, one in self.readings.items()]
        return concat(tables, ignore_index=True)

    def between_halves(
        self, word: str | int, layer: int, *, group: str | None = None
    ) -> tuple[Estimate, Estimate] | None:
        """The mean probability of a watched word by the lens of each half of its corpus.

        Their difference is the error of the fit, which an interval over prompts does not hold. None
        if the halves are not known.

        Raises:
            InterpError: a word that was not watched, or a layer or group that was not read.
        """
        if "half 1" not in self.controls:
            return None
        a, b = (self.controls[f"half {i}"].probability(word, layer, group=group) for i in (1, 2))
        return a, b

    def plot(self, *, word: str | int | None = None, group: str | None = None) -> Any:
        """The likeliest token of every layer and token; or one watched word by every reading.

        For a word: its mean probability over layers with 95 % intervals over prompts.

        Raises:
            InterpError: a word that was not watched, or a group that does not exist.
        """
        from interp.plots.lines import interval_lines

        if word is None:
            return self.lens.plot()
        layers, series = self.lens.layers, {}
        for name, one in self.readings.items():
            found = [one.probability(word, layer, group=group) for layer in layers]
            # A single prompt has no interval.
            ends = [(e.low, e.high) if e.n > 1 else (e.mean, e.mean) for e in found]
            series[name] = ([e.mean for e in found], *zip(*ends, strict=True))
        return interval_lines(
            series,
            x_title="layer",
            y_title=f"probability of {word!r}",
            x=layers,
            controls=[name for name in self.controls if name != "identity"],
        )


@reads_arguments
def read_lens(
    model: LanguageModel,
    prompts: Task | Prompt | Sequence[Prompt],
    maps: LensMaps,
    positions: Positions | None = None,
    *,
    layers: Sequence[int] | None = None,
    k: int = 10,
    words: str | int | Sequence[str | int] = (),
    groups: Sequence[Hashable] | None = None,
    runs: StoredRuns | ChangedRuns | None = None,
    controls: bool = True,
    **run: Unpack[RunKeywords],
) -> LensReading:
    """The next-token distribution that a fitted lens reads at each layer, beside its controls.

        p_l = softmax(W_U norm_final(M_l h_l + b_l)),   reported: the mean of p_l over samples

    The states are captured once, at resid_post, and read by every lens. For the rest see
    `logit_lens`, which is the same with M_l = 1.

    Args:
        model: the model on which the lens was fitted.
        prompts: texts, token tuples or a task (its clean prompts).
        maps: a lens, e.g. from `fit_jacobian_lens`, `fit_tuned_lens`, `shipped_lens`.
        positions: one token of each prompt. By default every token of a single prompt, and the last
            one of several prompts.
        layers: layers of the lens; all by default.
        k: number of top tokens of each mean distribution.
        words: tokens to watch.
        groups: one label per prompt; means are taken within groups.
        runs: stored runs of the prompts to read from.
        controls: read the controls of `lens_controls` too.
        run: budget_gb, the memory for the captured residual streams, 2 by default; progress,
            called with (cells read, cells in total) over all lenses; cancelled.

    Raises:
        InterpError: a lens of another model, a layer that it was not fitted at, or what
            `logit_lens` refuses.
    """
    maps.require_model(model)
    chosen = list(maps.layers if layers is None else layers)
    for layer in chosen:
        maps.place(layer)
    lenses = {maps.kind: maps, **(lens_controls(maps, model) if controls else {})}
    found = lenses_through(
        model,
        prompts,
        positions,
        sites="resid_post",
        layers=chosen,
        k=k,
        words=words,
        groups=groups,
        runs=runs,
        maps=[one.apply for one in lenses.values()],
        options=RunOptions(**{"budget_gb": 2.0, **run}),
    )
    first, *rest = found
    beside = dict(zip([*lenses][1:], rest, strict=True))
    return LensReading(kind=maps.kind, lens=first, controls=beside)
