"""The whole study, step by step, resumable: from the model's own texts to one report."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from interp.errors import InterpError
from interp.files import cache_dir, content_key, versions, write_atomically
from interp.generation import Generation
from interp.glu import glu_vectors
from interp.models.language_model import LanguageModel
from interp.studies.steps import Result, Steps, read_results
from interp.studies.verification import (
    comparing,
    finding,
    generating,
    intervening,
    reading,
)
from interp.studies.verification.behaviour import behaviour, countdown_texts
from interp.studies.verification.context import (
    VERSION,
    Context,
    Settings,
    make_context,
    verdict_task,
)
from interp.studies.verification.intervening import plain
from interp.studies.verification.samples import Samples, verdict_tokens
from interp.tasks.countdown import Problem, make_countdown

MANIFEST = "study.json"


@dataclass(frozen=True, kw_only=True)
class Study:
    """Results of every step by name, what they took, and where they are kept."""

    model: str
    model_hash: str
    settings: Settings
    results: dict[str, Result]
    seconds: dict[str, float]
    directory: Path


def study_verification(
    model: LanguageModel,
    base: LanguageModel | None = None,
    *,
    settings: Settings | None = None,
    directory: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Study:
    """Redo the study of Lee et al. 2025 (arXiv 2504.14379) on a model, with controls.

    Every step is kept in `directory` (under the cache by default) as it ends; the same call goes
    on from there. Nothing depends on the model's sizes; it must have a gated MLP, a fast engine,
    and a tokeniser that keeps digits, " (", "this" and "not" apart.

    Args:
        model: a model that writes the CountDown chain of thought.
        base: the model it was trained from, for the comparison; left out without.
        settings: see `Settings`.
        directory: where step results go.
        say: called with a line at every step.

    Raises:
        InterpError: a model the study cannot be done on, or too few valid or invalid attempts.
    """
    settings = settings or Settings()
    verdict_tokens(model)
    glu_vectors(model, 0, 0)
    key = [VERSION, model.hash, base.hash if base else None, settings.to_dict(), versions()]
    directory = directory or cache_dir() / "studies" / f"verification-{content_key(key)}"
    steps = Steps(directory=directory, key=key, say=say)
    about = {"model": model.name, "model_hash": model.hash, "settings": settings.to_dict()}
    text = json.dumps(about | {"base": base.name if base else None})
    write_atomically(directory / MANIFEST, lambda path: path.write_text(text, encoding="utf-8"))
    problems, texts = _texts(model, settings, steps)
    context = make_context(model, base, settings, problems, texts)
    results: dict[str, Result] = {}

    def step(name: str, compute: Callable[[], Result]) -> Result:
        results[name] = steps(name, compute)
        return results[name]

    step("behaviour", lambda: _behaviour(context))
    step("probes", lambda: reading.probes(context))
    step("lens", lambda: reading.lens(context))
    glu = step("glu", lambda: reading.glu(context))
    attention = step("attention", lambda: reading.attention(context))
    pairs = verdict_task(context, context.find, settings.pairs)
    patching = step("patching", lambda: finding.patching(context, pairs))
    previous = attention["t_ans to earlier"]["heads"]
    valid, invalid = (glu[name]["neurons"] for name in ("GLU_Valid", "GLU_Invalid"))
    strong = finding.strongest(patching["noise"]["values"], 16)
    scores = step("head_scores", lambda: reading.head_scores(context, previous or strong, valid))
    ranked = step("orders", lambda: _orders(context, previous, strong, scores))
    curves = step("curves", lambda: finding.curves(context, ranked["orders"]))
    chosen = curves["chosen"]
    step("communication", lambda: reading.communication(context, scores, chosen, valid))
    sets = {
        "GLU_Valid": valid,
        "GLU_Valid and GLU_Invalid": list(dict.fromkeys([*valid, *invalid])),
        "A_Prev": previous,
        "A_Verif": chosen,
    }
    sets = {name: labels for name, labels in sets.items() if labels}

    def few(n: int) -> Samples:
        return context.test.balanced(min(n, settings.n // 2), seed=settings.seed)

    for kind in intervening.KINDS:
        step(
            f"effects_{kind}",
            lambda kind=kind: intervening.verdict_effects(context, context.test, sets, kind=kind),
        )
    step(
        "effects_everywhere",
        lambda: intervening.verdict_effects(
            context, few(12), sets, where="all", draws=min(20, settings.draws)
        ),
    )
    step("interventions", lambda: generating.intervention_table(context, few(100), sets))
    step(
        "side_effects",
        lambda: generating.side_effects(context, few(20), sets, draws=min(10, settings.draws)),
    )
    test_pairs = verdict_task(context, context.test, settings.pairs)
    heads = {name: labels for name, labels in sets.items() if name.startswith("A_")}
    step("sufficiency", lambda: intervening.sufficiency(context, test_pairs.pairs, heads))
    step("stability", lambda: finding.stability(context, strong[:10], max(1, min(3, len(chosen)))))
    if base is not None:
        step("base", lambda: comparing.against_base(context, chosen, valid))
    return Study(
        model=model.name,
        model_hash=model.hash,
        settings=settings,
        results=results,
        seconds=dict(steps.seconds),
        directory=directory,
    )


def kept_studies() -> list[Study]:
    """The studies under the cache, the newest first; unfinished ones have some results only."""
    found = sorted(
        (cache_dir() / "studies").glob(f"verification-*/{MANIFEST}"),
        key=lambda path: -path.stat().st_mtime,
    )
    return [open_study(path.parent) for path in found]


def open_study(directory: Path) -> Study:
    """A study as it lies on disk, whatever steps it has.

    Raises:
        InterpError: there is none in the directory.
    """
    try:
        about = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InterpError(
            f"the study in {directory}", f"no {MANIFEST} that can be read", "run the study first"
        ) from error
    results, seconds = read_results(directory)
    return Study(
        model=about["model"],
        model_hash=about["model_hash"],
        settings=Settings(**_tuples(about["settings"])),
        results=results,
        seconds=seconds,
        directory=directory,
    )


def _texts(
    model: LanguageModel, settings: Settings, steps: Steps
) -> tuple[list[Problem], list[Generation]]:
    """Problems and the model's texts, n problems at a time until there are samples enough."""
    problems: list[Problem] = []
    texts: list[Generation] = []
    everything = make_countdown(
        6 * settings.n, operands=settings.operands, seed=settings.seed, split="test"
    )
    while True:
        block = everything[len(problems) : len(problems) + settings.n]
        kept = steps(
            f"texts_{len(problems)}",
            lambda block=block: _generated(model, settings, block),
        )
        problems += block
        texts += [Generation(**_tuples(row)) for row in kept["texts"]]
        try:
            make_context(model, None, settings, problems, texts)
            return problems, texts
        except InterpError:
            if len(problems) == len(everything):
                raise


def _generated(model: LanguageModel, settings: Settings, problems: list[Problem]) -> Result:
    made = countdown_texts(
        model, problems, template=settings.template, max_new_tokens=settings.max_new_tokens
    )
    return {"texts": [dict(vars(text)) for text in made]}


def _tuples(row: Result) -> Result:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}


def _behaviour(context: Context) -> Result:
    shares = behaviour(context.problems, context.texts, template=context.settings.template)
    return {
        "problems": len(context.problems),
        "attempts": shares.attempts,
        "rows": [{"share": row["share"], **plain(row["value"])} for row in shares.rows()],
        "example": context.problems[0].prompt(context.settings.template) + context.texts[0].text,
        "find": int(context.find.valid.sum()),
        "test": int(context.test.valid.sum()),
    }


def _orders(context: Context, previous: list[str], strong: list[str], scores: Result) -> Result:
    """Heads in every order: A_Prev by attention and by its scores, all heads by patching."""
    orders: dict[str, list[str]] = {}
    if previous:
        orders["attention"] = previous
        orders |= {f"head-GLU, {mode}": found["order"] for mode, found in scores.items()}
    orders["patching"] = strong
    orders["greedy"] = intervening.greedy_order(context, context.find, strong, 8)
    return {"orders": {name: order for name, order in orders.items() if order}}
