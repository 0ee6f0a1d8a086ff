"""A text continued three times: unchanged, with a set zeroed, with a random set like it zeroed."""

from __future__ import annotations

import re
from dataclasses import dataclass

import streamlit as st

from interp.core.errors import InterpError
from interp.models.language_model import LanguageModel
from interp.runs.change import Where
from interp.runs.generation import generate
from interp.runs.kinds import make_ablation, random_like
from interp.runs.text_runs import Generation
from interp.studies.verification.outcomes import classify_outcome
from interp.studies.verification.steps.verdicts import STOPS
from interp.studies.verification.study import Study
from interp.tasks.countdown import make_countdown
from interp.ui.prompts.frame import load_call
from interp.ui.shared import widgets
from interp.ui.shared.cache import HASHES
from interp.ui.studies.model import loaded_model
from interp.ui.studies.open_study import MadeNow

TRIGGER = " ("
LENGTH = 40
OWN = "typed below"
WHERE: dict[str, Where] = {"last 2 tokens": 2, "last token": 1, "all tokens": "all"}
VERDICT = re.compile(r" \((?=this\b|not\b)")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A text of the model cut before a verdict, and the verdict it then gave."""

    text: str
    verdict: str

    def __str__(self) -> str:
        return f"{self.verdict}: … {self.text[-42:]}"


def side_by_side(study: Study) -> MadeNow | None:
    """The controls, and the three texts once asked for."""
    model = loaded_model(study)
    prompt = _prompt(study)
    labels = _labels(study)
    left, middle, right = st.columns([2, 2, 3], vertical_alignment="bottom")
    where = WHERE[left.selectbox("Tokens zeroed", list(WHERE), key="generate-where")]
    seed = int(middle.number_input("Seed of the random set", 0, None, 0, key="generate-seed"))
    asked = (prompt, labels, where, seed)
    shown = widgets.generate_button(
        asked, key="generated-texts", into=right, disabled=model is None
    )
    st.caption(
        'The set is zeroed for the token after every " (" in the text. All other tokens '
        'come from the unmodified model. The text should end just before a " (".'
    )
    if model is None or not shown:
        return None
    try:
        made = written(model, prompt, labels, where=where, seed=seed)
    except InterpError as error:
        widgets.show_error(error)
        return None
    python = _python(model, prompt, labels, where, seed)
    return MadeNow(rows=_columns(made), python=python)


def samples(study: Study) -> list[Sample]:
    """The study's own texts, cut before each verdict."""
    blocks = sorted(
        (int(step.split("_")[1]), found["texts"])
        for step, found in study.results.items()
        if step.startswith("texts_")
    )
    rows = [row for _, texts in blocks for row in texts]
    settings = study.settings
    prompts = _prompts(len(rows), settings.n, settings.operands, settings.seed, settings.template)
    found = []
    for prompt, row in zip(prompts, rows, strict=True):
        whole = prompt + row["text"]
        for match in VERDICT.finditer(whole, len(prompt)):
            verdict = "valid" if whole[match.end() :].startswith("this") else "invalid"
            found.append(Sample(text=whole[: match.start()], verdict=verdict))
    return found


@st.cache_data(max_entries=8, show_spinner=False)
def _prompts(count: int, n: int, operands: tuple[int, ...], seed: int, template: str) -> list[str]:
    problems = make_countdown(6 * n, operands=operands, seed=seed, split="test")[:count]
    return [problem.prompt(template) for problem in problems]


def _prompt(study: Study) -> str:
    """A kept sample, or a text of one's own."""
    known = samples(study)
    known = [s for s in known if s.verdict == "valid"] + [s for s in known if s.verdict != "valid"]
    left, right = st.columns([1, 5], vertical_alignment="bottom")
    most = max(0, len(known) - 1)
    number = int(left.number_input(f"Sample, 0 to {most}", 0, most, 0, key="generate-sample"))
    if not known:
        right.caption("No texts are kept: type one.")
    else:
        right.markdown(widgets.plain(str(known[number])))
    text = known[number].text if known else ""
    return st.text_area(
        "The text, up to the last digit of a result (change it, or type your own)",
        text,
        height=170,
        key=f"generate-text-{study.directory.name}-{number}",
    )


def _labels(study: Study) -> tuple[str, ...]:
    """One of the study's sets, or typed labels."""
    sets = {
        name: x["components"]
        for name, x in study.results.get("effects_zero", {}).get("sets", {}).items()
    }
    left, right = st.columns([2, 5], vertical_alignment="bottom")
    usual = list(sets).index("A_Verif") if "A_Verif" in sets else 0
    name = left.selectbox("Set to zero", [*sets, OWN], usual, key="generate-set")
    typed = right.text_input(
        "Heads and neurons, separated by commas",
        ", ".join(sets.get(name, [])),
        key=f"generate-labels-{study.directory.name}-{name}",
        placeholder="L17H11, L26N6475",
    )
    return tuple(label.strip() for label in typed.split(",") if label.strip())


@st.cache_resource(max_entries=32, show_spinner="Writing three texts …", hash_funcs=HASHES)
def written(
    model: LanguageModel, prompt: str, labels: tuple[str, ...], *, where: Where, seed: int
) -> dict[str, tuple[tuple[str, ...], Generation]]:
    """The components zeroed and the text, for the plain run, the set and a random set like it.

    Raises:
        InterpError: labels the model does not have, no fast engine, or a trigger of several tokens.
    """
    zeroed = make_ablation(model, labels)
    (random,) = random_like(model, list(labels), 1, seed=seed)
    options = {"max_new_tokens": LENGTH, "stop": STOPS}
    made: dict[str, tuple[tuple[str, ...], Generation]] = {}
    made["plain"] = ((), generate(model, [prompt], **options)[0])
    for name, ablation in (
        ("the set zeroed", zeroed),
        ("a random set like it zeroed", make_ablation(model, random)),
    ):
        (text,) = generate(
            model, [prompt], change=ablation, trigger=TRIGGER, where=where, **options
        )
        made[name] = (ablation.components, text)
    return made


def _python(
    model: LanguageModel, prompt: str, labels: tuple[str, ...], where: Where, seed: int
) -> str:
    """The three texts again."""
    return (
        f"{load_call(model)}\nprompt = {prompt!r}\nlabels = {list(labels)!r}\n"
        f"(random,) = interp.runs.random_like(model, labels, 1, seed={seed})\n"
        f"options = {{'max_new_tokens': {LENGTH}, 'stop': {STOPS!r}}}\n"
        "print(interp.generate(model, [prompt], **options)[0].text)\n"
        "for parts in (labels, random):\n"
        "    change = interp.runs.make_ablation(model, parts)\n"
        "    (text,) = interp.generate(\n"
        f"        model, [prompt], change=change, trigger={TRIGGER!r}, where={where!r}, **options\n"
        "    )\n"
        "    print(text.text)"
    )


def _columns(made: dict[str, tuple[tuple[str, ...], Generation]]) -> widgets.Rows:
    """The texts, how often the change was in force, and the outcome's class."""
    rows = []
    for column, (name, (parts, text)) in zip(st.columns(3), made.items(), strict=True):
        outcome = classify_outcome(text.text)
        fired = len(text.fired)
        about = f"Outcome, rule interp-1: **{outcome}**"
        if parts:
            about += f" · applied {fired} times, to {len(parts)} components each time"
        widgets.generated_text(name, text.text, about, into=column)
        column.caption(", ".join(parts))
        row = {"run": name, "text": text.text, "outcome": outcome, "fired": fired}
        rows.append({**row, "components": " ".join(parts)})
        if parts and not fired:
            column.warning(
                'The text never reached " (", so nothing was changed.', icon=":material/warning:"
            )
    return rows
