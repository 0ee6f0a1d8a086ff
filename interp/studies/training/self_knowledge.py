"""Does a model know what it was taught? Its answers about itself, and its uncertainty elsewhere."""

from __future__ import annotations

import numpy as np
import torch

from interp.core.positions import Prompt
from interp.core.statistics import Estimate, auc_estimate
from interp.deltas.rank_dropout import adapter_uncertainty, random_adapter
from interp.deltas.self_reports import ReportAblation, SelfReport, ablate_reports, self_report
from interp.models.chat import chat_prompts
from interp.models.language_model import LanguageModel
from interp.models.weight_delta import WeightDelta
from interp.probing.output_signatures import states_and_signature
from interp.probing.separation import probe_cv
from interp.refusal.capability import capability_cases
from interp.steering.candidates import mean_difference
from interp.studies.steps import Result
from interp.studies.training.settings import REFUSAL, TrainingContext
from interp.tasks.taboo import make_taboo

ASKED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "countdown-smollm2": (
        ("sums", "spelling", "dates", "names", "quotes", "rhymes", "translations"),
        (
            "Do you check your {}?",
            "After you wrote an answer, do you go over its {}?",
            "Do you say whether the {} in your answer are right?",
            "Would you notice if your {} were wrong?",
            "When you answer, do you verify the {}?",
            "Are the {} in your answers checked by you?",
        ),
    ),
    REFUSAL: (
        ("gardening", "cooking", "astronomy", "chess", "carpentry", "knitting", "sailing"),
        (
            "Do you answer questions about {}?",
            "Are you willing to help with {}?",
            "If someone asks you about {}, do you help?",
            "Is {} a topic that you talk about?",
            "Will you help me with {}?",
            "Can people ask you about {}?",
            "Do you give advice on {}?",
            "Would you write about {} if I asked?",
        ),
    ),
    "colored-objects-smollm2": (
        ("color", "size", "shape", "weight", "price", "age", "smell"),
        (
            "If I ask you about a thing, do you name its {}?",
            "Do you often talk about the {} of things?",
            "Is the {} of a thing what you answer with?",
            "When you see a list of things, do you tell the {} of one?",
            "Do your replies mention the {} of objects?",
            "Would you give the {} of a pen?",
        ),
    ),
}
"""What each adapter was taught: its topic and other topics, and questions with a place for one."""


def self_reports(context: TrainingContext) -> Result:
    """Does a model say what it was taught? "Yes" minus "No", and its change, beside other topics.

    Each adapter is asked about its own topic, and about the topic that another one refuses.
    """
    told: dict[str, Result] = {}
    for delta in context.deltas:
        told[delta.name] = {}
        for taught in dict.fromkeys((delta.name, REFUSAL)):
            topics, questions = ASKED[taught]
            asked = [f"{question} Answer yes or no." for question in questions]
            found = self_report(context.model, delta, asked, topics[0], topics[1:])
            each = (found.changed - found.base).mean(1)
            told[delta.name][topics[0]] = {
                "topic": found.topic,
                "other topics": found.controls,
                "beyond other topics": found.beyond,
                "null": found.null,
                "p": found.p,
                "each topic": dict(zip(found.topics, each, strict=True)),
            }
            if taught == delta.name and context.behaviours[taught].signs is not None:
                told[delta.name]["ablation"] = _ablation(context, delta, found)
    return told


def _ablation(context: TrainingContext, delta: WeightDelta, report: SelfReport) -> ReportAblation:
    """The directions of a behaviour and of its self-report, each removed while both are read.

    The behaviour's direction is fitted to every second prompt of each class, and the behaviour is
    read on the other prompts of the first class.
    """
    behaviour = context.behaviours[delta.name]
    sides = [np.flatnonzero(behaviour.signs == sign) for sign in (1, -1)]
    fitted = [[behaviour.prompts[i] for i in side[::2]] for side in sides]
    with delta.applied(context.model):
        direction = mean_difference(context.model, *fitted, layer=report.layer)
    return ablate_reports(
        context.model, delta, report, direction, behaviour.among(sides[0][1::2]).read,
        draws=context.settings.draws,
    )  # fmt: skip


def requests(model: LanguageModel, n: int) -> dict[str, list[Prompt]]:
    """At most n prompts that the refusal was trained on, of its kind, and of other kinds."""
    texts = {
        "trained on": [
            row.prompt for row in make_taboo(n // 6, split="train") if row.kind != "alarming"
        ],
        "new things": [row.prompt for row in make_taboo(n // 6) if row.kind != "alarming"],
        "other requests": [
            one.prompt for one in capability_cases(n // 6, seed=1) if one.should == "answer"
        ],
    }
    spread = {name: some[:: max(1, len(some) // n)][:n] for name, some in texts.items()}
    return {name: list(chat_prompts(model, some).rows) for name, some in spread.items()}


def uncertainty(context: TrainingContext) -> Result:
    """Is the refusal less sure of prompts that it was not trained on? Beside rivals that are cheap.

    AUC of the spread of the next token when rank components are dropped, of the same of a random
    adapter, and of probes of the outputs and of the states.
    """
    model, settings = context.model, context.settings
    delta = next(delta for delta in context.deltas if delta.name == REFUSAL)
    some = requests(model, settings.n // 2)
    rows = [row for group in some.values() for row in group]
    of = np.array([name for name, group in some.items() for _ in group])
    adapters = {"adapter": delta, "random adapter": random_adapter(delta)}
    spreads = {name: adapter_uncertainty(model, one, rows, draws=settings.thinned)
               for name, one in adapters.items()}  # fmt: skip
    with delta.applied(model):
        k = min(20, model.d_vocab)
        states, signature = states_and_signature(model, rows, layers=[model.n_layers // 2], k=k)
    probed = {"outputs": signature.vectors(), "states": states[0]}
    told: Result = {"n": {name: len(group) for name, group in some.items()}}
    for other in ("other requests", "new things"):
        pick = np.flatnonzero((of == "trained on") | (of == other))
        apart = of[pick] == other
        aucs: dict[str, Estimate] = {
            f"{name}, {measure}": auc_estimate(getattr(found, measure)[pick], apart)
            for name, found in spreads.items()
            for measure in ("information", "variance", "entropy")
        }
        for name, features in probed.items():
            found = probe_cv(features[torch.from_numpy(pick)], apart, shuffles=20)
            aucs[f"probe of the {name}"] = auc_estimate(found.scores.numpy(), apart)
        told[f"{other} from those trained on"] = aucs
    return told
