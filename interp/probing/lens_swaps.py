"""Whether swapping two words along a lens changes the answer, more than its controls do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.core.arguments import Positions, listed, reads_arguments
from interp.core.errors import InterpError, unknown
from interp.core.nulls import turned_directions
from interp.core.positions import Prompt
from interp.core.run_options import Progress
from interp.core.schema import Real, Seed, checked
from interp.core.statistics import Estimate, mean_estimate, share_estimate
from interp.engine.stopping import StopCheck, stoppable
from interp.models.language_model import LanguageModel
from interp.plots.tables import Tabled
from interp.probing.lens_changes import Gauge, swap_edit, word_rows
from interp.probing.lens_maps import LensMaps, lens_controls
from interp.runs.change import Change
from interp.runs.next_tokens import ablate

if TYPE_CHECKING:
    from pandas import DataFrame

OTHER_WORD, RANDOM = "another word", "random directions"
"""Controls of a swap besides the lenses: see `swap_answers`."""


@dataclass(frozen=True, kw_only=True)
class SwapCase:
    """A prompt whose answer depends on a word, and the answer that another word would have.

    Attributes:
        prompt: such as "The capital of France is".
        source: the word, such as " France"; `target` the other one, such as " Japan".
        target: see above.
        answer: the answer, such as " Paris".
        wanted: the answer for the other word, such as " Tokyo".
    """

    prompt: Prompt
    source: str | int
    target: str | int
    answer: str | int
    wanted: str | int


@dataclass(frozen=True, kw_only=True, eq=False)
class LensSwaps(Tabled):
    """What swaps along a lens do to the answers, by layer, beside their controls.

    Attributes:
        kind: the kind of the lens; its row is the first.
        lenses: the lens, the controls of `lens_controls`, "another word" and "random directions".
        layers: the layers, at each of which alone the words are swapped.
        moved: (lens, layer, case) the change of log p(wanted) - log p(answer) by the swap.
        turned: (lens, layer, case) whether the likeliest token is then the wanted answer.
        gauge, strength: of the swaps.
    """

    kind: str
    lenses: tuple[str, ...]
    layers: tuple[int, ...]
    moved: np.ndarray
    turned: np.ndarray
    gauge: str
    strength: float

    def __repr__(self) -> str:
        layer = max(self.layers, key=lambda one: self.estimate(one).mean)
        best, shares = self.estimate(layer), self.share(layer)
        return (
            f"LensSwaps({self.kind}, {self.gauge} gauge, n={best.n} cases; most at layer {layer}: "
            f"{best.mean:+z.2f} [{best.low:+z.2f}, {best.high:+z.2f}] nats, "
            f"{shares.mean:z.0%} of the answers turned)"
        )

    def estimate(self, layer: int, lens: str | None = None) -> Estimate:
        """Mean change of log p(wanted) - log p(answer), in nats, with its interval over cases.

        Raises:
            InterpError: an unknown layer or lens.
        """
        row, place = self._cell(layer, lens)
        return mean_estimate(self.moved[row, place])

    def share(self, layer: int, lens: str | None = None) -> Estimate:
        """Share of the cases in which the wanted answer becomes the likeliest token.

        Raises:
            InterpError: an unknown layer or lens.
        """
        row, place = self._cell(layer, lens)
        return share_estimate(int(self.turned[row, place].sum()), self.turned.shape[2])

    def gain(self, layer: int, control: str) -> Estimate:
        """The change by the lens minus that by a control, on the same cases.

        Raises:
            InterpError: an unknown layer or control.
        """
        (row, place), (other, _) = self._cell(layer, None), self._cell(layer, control)
        return mean_estimate(self.moved[row, place] - self.moved[other, place])

    def to_dataframe(self) -> DataFrame:
        """One row per lens and layer, with 95 % intervals over cases."""
        from pandas import DataFrame

        rows = []
        for lens in self.lenses:
            for layer in self.layers:
                e, share = self.estimate(layer, lens), self.share(layer, lens)
                row = {"lens": lens, "layer": layer, "moved": e.mean, "low": e.low, "high": e.high}
                rows.append(row | {"turned": share.mean, "n": e.n})
        return DataFrame(rows)

    def plot(self) -> Any:
        """The mean change over layers, a line for each lens, with 95 % intervals over cases."""
        from interp.plots.lines import interval_lines

        series = {}
        for lens in self.lenses:
            found = [self.estimate(layer, lens) for layer in self.layers]
            series[lens] = tuple([getattr(e, at) for e in found] for at in ("mean", "low", "high"))
        return interval_lines(
            series,
            x_title="layer of the swap",
            y_title="change of log p(wanted) - log p(answer), nats",
            x=self.layers,
            controls=[name for name in self.lenses[1:] if name != "identity"],
        )

    def _cell(self, layer: int, lens: str | None) -> tuple[int, int]:
        lens = self.lenses[0] if lens is None else lens
        if lens not in self.lenses:
            raise unknown("lens", lens, self.lenses)
        if layer not in self.layers:
            raise unknown("lens layer", str(layer), [str(one) for one in self.layers])
        return self.lenses.index(lens), self.layers.index(layer)


def known_cases(
    model: LanguageModel, template: str, pairs: Sequence[tuple[str, str]]
) -> list[SwapCase]:
    """The cases of a template that the model answers right; each is swapped with the next one.

    Args:
        model: a model with a tokeniser.
        template: a prompt with {} in the place of the word, such as "The capital of {} is".
        pairs: words and answers, such as ("France", "Paris"). Left out are those of several tokens,
            and those whose answer is not the model's likeliest token.

    Raises:
        InterpError: a template without {}, or fewer than two pairs that are left.
    """
    asked = f"swaps in {template!r}"
    if template.count("{}") != 1:
        raise InterpError(asked, "no place for the word", "write {} once")
    single = [
        (f" {word}", f" {answer}")
        for word, answer in pairs
        if len(model.token_id(f" {word}")) == len(model.token_id(f" {answer}")) == 1
    ]
    prompts = [template.replace(" {}", word).replace("{}", word.strip()) for word, _ in single]
    known = []
    if prompts:
        best = model.last_logits(prompts).argmax(-1).tolist()
        known = [
            (prompt, *pair)
            for prompt, pair, token in zip(prompts, single, best, strict=True)
            if token == model.single_token(pair[1])
        ]
    if len({answer for *_, answer in known}) < 2:
        found = f"{len(known)} of {len(pairs)} pairs are single tokens and answered right"
        raise InterpError(asked, found, "give pairs that the model knows")
    rolled = [*known[1:], known[0]]
    return [
        SwapCase(prompt=prompt, source=word, target=other, answer=answer, wanted=wanted)
        for (prompt, word, answer), (_, other, wanted) in zip(known, rolled, strict=True)
        if answer != wanted
    ]


@reads_arguments
def swap_answers(
    model: LanguageModel,
    cases: Sequence[SwapCase],
    maps: LensMaps,
    *,
    gauge: Gauge = "centred",
    strength: float = 1.0,
    positions: Positions = "all",
    seed: int = 0,
    progress: Progress | None = None,
    cancelled: StopCheck = lambda: False,
) -> LensSwaps:
    """Swap the word of each prompt with another one along a lens, and read the answers.

    Every layer is swapped alone, with `swap_words`, and every swap is run exactly. Beside the
    lens stand the controls of `lens_controls` and two more. "another word" swaps the source with
    the target of another case and still asks for this case's wanted answer: what it changes does
    not depend on the word put in. "random directions" swaps along two random vectors with the
    lengths and the angle of the two lens vectors.

    Args:
        model: the model on which the lens was fitted, with a fast engine.
        cases: at least two, e.g. from `known_cases`.
        maps: the lens.
        gauge: which lens vectors, see `lens_changes.Gauge`.
        strength: of the swaps.
        positions: the tokens at which the words are swapped.
        seed: of the random directions and the shuffled layers.
        progress: called with (cases done, cases in all).
        cancelled: asked in every layer; the run stops when it returns True.

    Raises:
        InterpError: a lens of another model, fewer than two cases, or what `swap_words` refuses.
    """
    cases, seed = listed(cases), checked(Seed, seed, "a seed")
    strength = checked(Real, strength, "strength of a swap")
    if len(cases) < 2:
        raise InterpError("swapping answers", f"{len(cases)} cases", "give at least two")
    maps.require_model(model)
    lenses = {maps.kind: maps, **lens_controls(maps, model, seed=seed)}
    names = (*lenses, OTHER_WORD, RANDOM)
    shape = (len(names), len(maps.layers))
    moved, turned = [], []
    with stoppable(cancelled):
        for number, case in enumerate(cases):
            other = _another(model, cases, number)
            pair, beside = (
                word_rows(model, [case.source, word], gauge) for word in (case.target, other)
            )
            changes = []
            for lens in names:
                for layer in maps.layers:
                    rows = beside if lens == OTHER_WORD else pair
                    chosen = lenses.get(lens, maps)
                    vectors = rows @ chosen.matrices[chosen.place(layer)].to(rows)
                    if lens == RANDOM:
                        drawn = seed + len(changes) + number * shape[0] * shape[1]
                        vectors = next(turned_directions(vectors, 1, seed=drawn))
                    name = f"{lens}, layer {layer}"
                    edit = swap_edit(name, layer, vectors, strength, positions)
                    changes.append(Change(name=name, edits=(edit,)))
            seen = ablate(model, [case.prompt], changes, tokens=[case.answer, case.wanted])
            with np.errstate(divide="ignore"):
                odds = np.log(seen.probabilities[:, 0, 1]) - np.log(seen.probabilities[:, 0, 0])
            moved.append((odds[1:] - odds[0]).reshape(shape))
            wanted = model.single_token(case.wanted)
            turned.append((seen.top[1:, 0] == wanted).reshape(shape))
            if progress is not None:
                progress(number + 1, len(cases))
    return LensSwaps(
        kind=maps.kind,
        lenses=names,
        layers=maps.layers,
        moved=np.stack(moved, -1),
        turned=np.stack(turned, -1),
        gauge=gauge,
        strength=strength,
    )


def _another(model: LanguageModel, cases: Sequence[SwapCase], number: int) -> str | int:
    """The target of the next case whose target is neither word of this one."""
    case = cases[number]
    own = {model.single_token(word) for word in (case.source, case.target)}
    for step in range(1, len(cases)):
        word = cases[(number + step) % len(cases)].target
        if model.single_token(word) not in own:
            return word
    found = "every other case has one of its words"
    raise InterpError(f"a control for {case.prompt!r}", found, "give cases of three words or more")
