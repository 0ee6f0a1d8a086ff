"""What the steps of the verification study cost on a model that is not loaded."""

from __future__ import annotations

from functools import partial

from interp.core.components import Component
from interp.engine.run_cost import read_flops
from interp.models.language_model import LanguageModel
from interp.studies.step_cost import Costs, StepCost, part
from interp.studies.verification.settings import WIDEST, VerificationSettings
from interp.studies.verification.steps import (
    chain,
    compared,
    controls,
    finding_heads,
    readouts,
    steering,
)
from interp.studies.verification.steps.interchange import EXCHANGES
from interp.studies.verification.steps.texts import EACH, PUBLISHED_TEXTS, TEXTS
from interp.studies.verification.steps.verdicts import KINDS, NULL_PAIRS, SUFFICIENT_PAIRS
from interp.tasks.countdown import make_countdown

TEXTS_A_SAMPLE = 2
"""Texts written for each sample, taken from the run that ships: 600 for 300."""

SETS, OURS = 6, 4
"""Sets of components that are ablated, and those of them that are not the published ones."""

DIRECTIONS = 3
RESULTS, TARGETS, SIZES = 5, 3, 2
"""Conditions of the step "compared" that edit the result, that edit targets named before, and that
put a large target; runs of the model's own attempts are kept."""

RIVALS, CONTINUED = 5 + steering.SHUFFLED, 80
"""Directions that know nothing of verdicts, and tokens of a text under intervention."""

BASE_TEXTS, BASE_TOKENS, ASKED = 40, 120, 60
CHAIN = 2
"""Stages of the chain that are found, before one in which no head qualifies."""

ASSUMED = (
    f"{TEXTS_A_SAMPLE} texts are written for each sample, as in the report that ships",
    "a text is as long as given (by default the limit), and an attempt lies at half of it",
    "ablated sets begin in the middle layer, and MLPs that write the verdict lie two thirds up",
    f"{SETS} sets are found, and the chain has {CHAIN} stages",
)


def verification_cost(
    model: LanguageModel,
    settings: VerificationSettings,
    *,
    new_tokens: int | None = None,
    base: bool = True,
) -> list[StepCost]:
    """The cost of every step, on prompts of its own tokeniser; `model` needs no weights.

    new_tokens: tokens that a text has on average; the limit by default. base: whether it is
    compared with the model it was trained from.
    """
    costs = Costs(decoder=model.require_decoder("the study of verification"))
    n_layers, n_heads, n, draws = model.n_layers, model.n_heads, settings.n, settings.draws
    written = settings.max_new_tokens if new_tokens is None else new_tokens
    problems = make_countdown(
        min(n, 200), operands=settings.operands, seed=settings.seed, split="test"
    )
    prompts = [len(model.tokenize(x.prompt(settings.template)).tokens) for x in problems]
    prompt = round(sum(prompts) / len(prompts))
    attempt = prompt + written // 2
    quarter, half, pairs = ([attempt] * k for k in (n // 4, n // 2, min(settings.pairs, n // 4)))
    few = [attempt] * min(2 * NULL_PAIRS, n // 2)
    changed = partial(costs.changed, layer=n_layers // 2, last=settings.window)
    whole = partial(costs.changed, layer=n_layers // 2, last=None)
    all_random = SETS * draws

    def paths(receivers: list[Component], wide: int, *, kept: bool = True) -> StepCost:
        where = [[*range(attempt - wide, attempt)]] * len(pairs)
        return costs.paths(pairs, where, receivers, kept=kept)

    mlps = [Component(min(costs.found + i, n_layers - 1), "mlp_out") for i in range(4)]
    neurons = [Component(layer, "post", 0) for layer in range(n_layers // 2, n_layers)]
    head = [Component(costs.found, site, 0) for site in "qkv"]
    swept = [costs.sweep(pairs, "z", last=2) for _ in range(2)]
    swept += [
        costs.sweep(pairs, site, last=1, by_head=False)
        for site in ("attn_out", "mlp_out")
        for _ in finding_heads.PLACES
    ]
    english = [len(model.tokenize(text).tokens) for text in controls.PLAIN_TEXT]

    def layerwise(samples: int) -> StepCost:
        """The logits of every layer, read at one token of some samples."""
        return StepCost(flops=read_flops(costs.decoder, n_layers * samples))

    strong, size = 16, finding_heads.LONGEST
    searched = strong + strong * (strong - 1) // 2
    greedy = sum(strong - i for i in range(finding_heads.GREEDY))
    random_glu = DIRECTIONS * len(settings.top_k) * (2 + finding_heads.RANDOM_SETS)
    steered = partial(costs.changed, layer=2 * n_layers // 3, last=1)
    single = [partial(costs.changed, layer=layer, last=1) for layer in range(n_layers)]
    turned = DIRECTIONS * len(steering.SCALES) * 2
    found = [
        part("texts", costs.texts([prompt] * (TEXTS_A_SAMPLE * n), written)),
        part("patching", *swept),
        part(
            "glu_choice",
            costs.plain(half),
            changed(quarter, random_glu),
            left_out="fitting the probes that give the directions",
        ),
        part("attention", left_out="reading patterns from stored runs"),
        part("behaviour", left_out="runs no model"),
        part("lens", costs.plain(half), layerwise(n // 2)),
        part("paths_direct", paths([], 2, kept=False)),
        part("probes", left_out="fitting probes on stored states"),
        part(
            "steering",
            costs.plain(half),
            steered(quarter, 2 * turned),
            steered(few[: len(few) // 2], turned * draws),
        ),
        part(
            "compared",
            changed(quarter, RESULTS, layer=0, last=WIDEST),
            *(costs.plain(quarter) for _ in range(TARGETS + len(compared.WORDINGS))),
            *(costs.plain([prompt] * (n // 4)) for _ in range(SIZES)),
        ),
        part(
            "steering_by_layer",
            *(one(quarter, 2 * len(steering.DOSES)) for one in single),
            *(one(few[: len(few) // 2], 2 * len(steering.DOSES) * (RIVALS + 2)) for one in single),
        ),
        part("glu", left_out="products of weights, and neurons read from stored runs"),
        part("head_scores", left_out="products of weights"),
        part(
            "smallest",
            changed(quarter, searched),
            *(
                costs.changed(quarter, n_heads, layer=x, last=settings.window)
                for x in range(n_layers)
            ),
            left_out="sets that are found, measured again",
        ),
        part("orders", changed(quarter, greedy)),
        part("paths_mlps", paths(mlps, 2)),
        part(
            "chain",
            paths(mlps, len(chain.PLACES)),
            *(paths(head, len(chain.PLACES)) for _ in range(CHAIN)),
            left_out="attention of the heads that are found",
        ),
        part("curves", changed(quarter, 2 * size), changed(quarter, 6 * draws)),
        part("paths_glu", paths(neurons, 2)),
        part(
            "side_effects",
            costs.plain([attempt] * controls.RESULTS),
            whole([attempt] * controls.RESULTS, OURS),
            whole([attempt] * 2, OURS * draws),
            costs.scored(english, 1 + OURS),
            costs.scored(english[:1], OURS * draws),
        ),
        part(
            "interventions",
            costs.texts([attempt] * TEXTS, CONTINUED),
            *(costs.texts([attempt] * TEXTS, CONTINUED) for _ in range(SETS)),
            changed([attempt] * EACH, all_random),
            left_out="texts of random sets after they part from the plain text",
        ),
        part(
            "effects_published",
            whole([attempt] * 2 * controls.PAIRS, 4),
            whole([attempt] * 2, 4 * draws),
            changed([attempt] * 2 * controls.PAIRS, 2 * (1 + draws)),
        ),
        *(part(f"effects_{kind}", changed(half, SETS), changed(few, all_random)) for kind in KINDS),
        part(
            "communication",
            *(costs.plain([attempt] * finding_heads.READ) for _ in finding_heads.PLACES),
            *(whole([attempt] * finding_heads.READ, 1) for _ in finding_heads.PLACES),
            whole([attempt] * finding_heads.READ_NULL, 2 * draws),
        ),
        part("interchange", changed(half, len(EXCHANGES) * SETS), changed(few, all_random)),
        part(
            "interchange_chain",
            changed(half, len(EXCHANGES) * (CHAIN + 1)),
            changed(few, (CHAIN + 1) * draws),
        ),
        part(
            "sufficiency",
            *(costs.plain(pairs) for _ in range(2)),
            changed(pairs, 2 * SETS),
            changed(pairs[:SUFFICIENT_PAIRS], 2 * all_random),
        ),
        part(
            "stability",
            changed(quarter, searched + greedy),
            changed(quarter, greedy),
            left_out="sets that resampled orders add",
        ),
        part(
            "interventions_published",
            *(costs.texts([attempt] * PUBLISHED_TEXTS, CONTINUED) for _ in range(1 + SETS)),
            left_out="heads changed at every token: each new token costs a whole run",
        ),
        part(
            "lens_without",
            changed([attempt] * readouts.WITHOUT, OURS - 1),
            *(layerwise(readouts.WITHOUT) for _ in range(OURS - 1)),
        ),
    ]
    if base:
        found.append(
            part(
                "base",
                costs.texts([prompt] * BASE_TEXTS, BASE_TOKENS),
                *(costs.plain(half) for _ in range(2)),
                *(layerwise(n // 2) for _ in range(2)),
                *(costs.plain([prompt] * ASKED) for _ in range(4)),
                left_out="fitting probes, and the difference of weights",
            )
        )
    return found
