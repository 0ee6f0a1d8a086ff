"""What a study costs on a model, before the model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

import psutil
import torch

from interp.core.errors import InterpError, unknown
from interp.core.schema import CheckedSettings, Count, NotNegative, Share, checked
from interp.engine.cost import LOSS, matmul_rate
from interp.models import embedded
from interp.models.cards import CARDS, Card, card_named
from interp.models.needs import BYTES, HERE, SHARE
from interp.models.weightless import weightless
from interp.plots.tables import Tabled
from interp.studies.refusal import cost as refusal
from interp.studies.refusal.settings import RefusalSettings
from interp.studies.reuse import cost as reuse
from interp.studies.reuse.settings import ReuseSettings
from interp.studies.step_cost import StepCost
from interp.studies.verification import cost as verification
from interp.studies.verification.settings import VerificationSettings

if TYPE_CHECKING:
    from pandas import DataFrame

STUDIES: dict[
    str, tuple[Callable[..., list[StepCost]], type[CheckedSettings], tuple[str, ...]]
] = {
    "verification": (
        verification.verification_cost, VerificationSettings, verification.ASSUMED,
    ),
    "refusal": (refusal.refusal_cost, RefusalSettings, refusal.ASSUMED),
    "reuse": (reuse.reuse_cost, ReuseSettings, reuse.ASSUMED),
}  # fmt: skip
"""For every study: the cost of its steps, its settings, and what is assumed."""


@dataclass(frozen=True, kw_only=True)
class Bill:
    """The time of a study in one place.

    name: this machine, or a GPU. needed: how many hold the weights in bfloat16 (float32 here).
    hours: of one of them, at the rate of one. measured: whether its rate of matrix products was
    measured. money: hours times the price of a GPU-hour; None without a price.
    """

    name: str
    needed: int
    hours: float
    measured: bool
    money: float | None


@dataclass(frozen=True, kw_only=True, repr=False)
class StudyCost(Tabled):
    """What a study costs; see `study_cost`.

    steps: a row for each. assumed: what the numbers take for granted. settings: the study's.
    share: of a card's peak. bills: hours, and money if a price of a GPU-hour was given.
    """

    study: str
    model: str
    parameters: int
    settings: dict[str, Any]
    share: float
    price: float | None
    assumed: tuple[str, ...]
    steps: tuple[StepCost, ...]
    bills: tuple[Bill, ...]

    @property
    def total(self) -> StepCost:
        """All steps together."""
        return sum(self.steps, StepCost(step="all steps"))

    @property
    def weights(self) -> float:
        """Bytes of the weights in bfloat16."""
        return float(BYTES["bfloat16"] * self.parameters)

    def __repr__(self) -> str:
        total, left = self.total, sum(bool(step.left_out) for step in self.steps)
        return (
            f"The study of {self.study} on {self.model} ({self.parameters:,} weights, "
            f"{self.weights / 1e9:.3g} GB in bfloat16) takes {total.runs:z,.0f} runs, "
            f"{total.tokens / 1e6:.3g} million tokens and {total.flops / 1e12:,.3g} TFLOP; "
            f"{left} of {len(self.steps)} steps are not counted, or not in full."
        )

    def to_dataframe(self) -> DataFrame:
        """One row for each step."""
        from pandas import DataFrame

        return DataFrame([asdict(step) for step in self.steps])


def study_cost(
    study: str,
    model: str,
    *,
    settings: CheckedSettings | None = None,
    new_tokens: int | None = None,
    beside: bool = True,
    gpu: str | None = None,
    price: float | None = None,
    share: float = SHARE,
) -> StudyCost:
    """What a study costs on a model, from the model's configuration and the study's settings.

        hours here    = 1.4 * flops / (measured operations a second)
        hours on a GPU = sum over steps of max(flops / (share * peak), reads * weights / bandwidth)

    Operations are those of matrix products that the engine cannot avoid: whole runs, restarted
    runs (`interp.engine.run_cost`), path patching (`interp.patching.path_cost`), texts. Prompts are
    the study's own, in the model's tokens (of the default model if it has no tokeniser). What
    depends on what the study finds is assumed (`assumed`) or left out, step by step (`left_out`),
    as is work without runs of the model, such as fitting probes. Times of GPUs are calculated, not
    measured: peak and bandwidth are those of the data sheet, and `share` is an assumption. They are
    those of the arithmetic alone: with small runs, much of a GPU's time passes between operations.
    A study needs the fast engine, so one device must hold the model.

    The guide on studies compares it with measured runs.

    Args:
        study: verification, refusal or reuse.
        model: a name as in `load_model`, or a config.json.
        settings: the study's; its defaults without.
        new_tokens: tokens that a text has on average; the settings' limit by default. Not for
            reuse, which writes no texts.
        beside: count the other model too: the base (verification) or the model trained on Colored
            Objects (reuse), of the same size.
        gpu: one of `interp.models.cards.CARDS` by name; all by default.
        price: of an hour of that GPU, in any currency; without it there is no money.
        share: the share of a card's peak that is reached, above 0 and at most 1.

    Raises:
        InterpError: an unknown study, settings of another one, a model that `load_model` would
            refuse or that the fast engine does not read, or a number out of range.
    """
    if study not in STUDIES:
        raise unknown("study", study, STUDIES)
    plan, kind, assumed = STUDIES[study]
    settings = kind() if settings is None else settings
    if not isinstance(settings, kind):
        found = type(settings).__name__
        raise InterpError(f"settings of the study of {study}", found, f"give {kind.__name__}")
    share = checked(Share, share, "share of study_cost()")
    cards = CARDS if gpu is None else (card_named(gpu),)
    if price is not None:
        price = checked(NotNegative, price, "price of study_cost()")
        if gpu is None:
            raise InterpError(f"a price of {price:g} an hour", "of no GPU", "name one by gpu")
    options: dict[str, Any] = {}
    if new_tokens is not None:
        if study == "reuse":
            raise InterpError("new_tokens for reuse", "it writes no texts", "leave it out")
        options["new_tokens"] = checked(Count, new_tokens, "new_tokens of study_cost()")
    if study != "refusal":
        options["base" if study == "verification" else "trained"] = beside
    built = weightless(model)
    if built.tokenizer is None:
        built.tokenizer = weightless(embedded.NAME).tokenizer
        assumed += (f"prompts are counted in the tokens of {embedded.NAME}",)
    steps = tuple(plan(built, settings, **options))
    parameters = sum(p.numel() for p in built.hf_model.parameters())
    return StudyCost(
        study=study,
        model=built.name,
        parameters=parameters,
        settings=asdict(settings),  # type: ignore[call-overload]
        share=share,
        price=price,
        assumed=assumed,
        steps=steps,
        bills=_bills(steps, parameters, cards, share, price),
    )


def _bills(
    steps: tuple[StepCost, ...],
    parameters: int,
    cards: Sequence[Card],
    share: float,
    price: float | None,
) -> tuple[Bill, ...]:
    """This machine's processor, and some cards."""
    rate = matmul_rate(torch.float32, torch.device("cpu"))
    memory, weights = psutil.virtual_memory().total, BYTES["bfloat16"] * parameters
    here = Bill(
        name=f"{HERE} (processor)",
        needed=ceil(BYTES["float32"] * parameters / memory),
        hours=LOSS * sum(step.flops for step in steps) / rate / 3600,
        measured=True,
        money=None,
    )
    found = [here]
    for card in cards:
        speed, flow = share * card.tflops * 1e12, card.gb_s * 1e9
        seconds = sum(max(x.flops / speed, x.reads * weights / flow) for x in steps)
        found.append(
            Bill(
                name=card.name,
                needed=ceil(weights / (card.memory_gb * 1e9)),
                hours=seconds / 3600,
                measured=False,
                money=None if price is None else price * seconds / 3600,
            )
        )
    return tuple(found)
