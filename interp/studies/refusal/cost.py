"""What the steps of the refusal study cost on a model that is not loaded."""

from __future__ import annotations

from functools import partial

from interp.models.language_model import LanguageModel
from interp.refusal.capability import capability_cases
from interp.refusal.cases import taboo_cases
from interp.studies.refusal.settings import TABOO_MODELS, RefusalContext, RefusalSettings, usual
from interp.studies.refusal.steps import frontier, heads
from interp.studies.step_cost import Costs, StepCost, part

METHODS, DOSES = 22, 33
"""Methods that are compared, and doses that are tried in all; taken from the report that ships."""

ASSUMED = (
    f"{METHODS} methods are compared at {DOSES} doses, as in the report that ships, each on the "
    "compared test prompts",
    "a reply is as long as given (by default the limit)",
    "heads are found on as many pairs as the settings ask for, for both kinds of refusal",
)
UNCOUNTED = (
    "directions", "rivals", "one_effect", "carriers", "neurons", "geometry", "groups", "paths",
    "flips", "chance",
)  # fmt: skip


def refusal_cost(
    model: LanguageModel, settings: RefusalSettings, *, new_tokens: int | None = None
) -> list[StepCost]:
    """The cost of the larger steps, on the shipped prompts; `model` needs no weights.

    new_tokens: tokens that a reply has on average; the limit by default. Steps that depend on what
    earlier ones find are named and not counted.
    """
    costs = Costs(decoder=model.require_decoder("the study of refusals"))
    taboo = model.name in TABOO_MODELS
    settings = usual(settings, "taboo" if taboo else "capability")
    cases = (
        taboo_cases(settings.n, requests=settings.requests, seed=settings.seed)
        if taboo
        else capability_cases(settings.n, seed=settings.seed)
    )
    context = RefusalContext(model=model, cases=tuple(cases), settings=settings)
    every = [len(row) for row in context.prompts.rows]
    written = settings.max_new_tokens if new_tokens is None else new_tokens
    compared = [every[i] for i in context.compared]
    select = [every[i] for i in context.rows("select")]
    some = every[: settings.select]
    whole = partial(costs.changed, layer=0, last=None)
    layers = model.n_layers
    tried = max(1, len(context.prompts.tail)) * len(
        range((layers - 1) % settings.thin, layers, settings.thin)
    )
    pairs = every[: settings.pairs]
    calm = every[: frontier.QUALITY]
    replied = [n + round(written) for n in calm]

    def candidates(count: int) -> StepCost:
        """Ablated on both sides, and added on one."""
        return whole(some, 2 * count) + costs.changed(some, count, layer=layers // 2, last=None)

    def by_head(times: int) -> StepCost:
        """Every head changed at all tokens of the pairs."""
        each = (
            costs.changed(pairs, times * model.n_heads, layer=x, last=None) for x in range(layers)
        )
        return part("", *each)

    method = part(
        "",
        costs.texts(compared, written),
        costs.scored(replied, 1),
        whole(calm, 1),
        whole(every[: frontier.JUDGED], 4),
    )
    return [
        part("behaviour", costs.texts(every, written)),
        part("tokens", costs.plain(every)),
        part("selection_harmful-harmless", candidates(tried)),
        part(
            "selection_refused-invented",
            candidates(layers),
            left_out="selections of over-refusals, which few models allow",
        ),
        part("cosmic", candidates(tried), left_out="fewer where early candidates are rejected"),
        part("separation", costs.plain(every), left_out="fitting probes"),
        *(
            part(f"heads_{side.replace(' ', '_')}", by_head(4), costs.plain(pairs))
            for side in heads.SIDES
        ),
        part("constellations", costs.plain(every), left_out="fitting the gate"),
        part("doses", whole(select, DOSES)),
        part("methods", *(method for _ in range(METHODS))),
        *(part(name, left_out="depends on what earlier steps find") for name in UNCOUNTED),
    ]
