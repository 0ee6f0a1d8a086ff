import warnings
from dataclasses import replace

import pytest
import torch

from interp.core.errors import InterpError
from interp.core.metrics import METRICS
from interp.core.prompts import PromptPair, Task
from interp.heads.switching import switch_off
from interp.runs import intervened
from interp.runs.generation import generate, generate_each
from interp.runs.hooks import intervene
from interp.runs.intervened import IntervenedText
from interp.runs.kinds import add, make_ablation, mean, project_out, scale, zero
from interp.runs.next_tokens import ablate
from interp.runs.stored_runs import site_values

PROMPTS = [tuple(range(5 + i, 5 + i + n)) for i, n in enumerate((9, 6, 9, 7, 3))]
LABELS = ["L0H1", "L1H2", "L1N4", "L2N20"]


def uncached(model, prompts, steps, change=None, trigger=None, where=1):
    """Every token from whole forward passes, one prompt at a time."""
    texts = []
    for prompt in prompts:
        text = list(prompt)
        for _ in range(steps):
            logits = model.last_logits([text])
            if change is not None and trigger in (None, text[-1]):
                with intervene(model, change.last(where)):
                    logits = model.last_logits([text])
            token = int(logits.argmax())
            if token == 2:
                break
            text.append(token)
        texts.append(tuple(text[len(prompt) :]))
    return texts


def test_plain_equals_uncached(family):
    found = generate(family, PROMPTS, max_new_tokens=8, rows=3)
    assert [g.tokens for g in found] == uncached(family, PROMPTS, 8)
    assert [g.prompt for g in found] == PROMPTS


@pytest.mark.parametrize("where", [1, pytest.param(2, marks=pytest.mark.long), "all"])
@pytest.mark.parametrize("kind", ["zero", pytest.param("mean", marks=pytest.mark.long), "steer"])
def test_changed_equals_uncached(family, kind, where):
    plain = uncached(family, PROMPTS, 8)
    written = [token for text in plain for token in text[:-1]]
    trigger = max(set(written), key=written.count)
    values = None
    if kind != "zero":
        addresses = [(0, "z"), (1, "z"), (1, "post"), (2, "post")]
        values = {
            at: 3 * value.mean(0, keepdim=True)
            for at, value in site_values(family, PROMPTS, addresses).items()
        }
    ablation = make_ablation(family, LABELS, kind, values=values)
    found = generate(
        family, PROMPTS, max_new_tokens=8, change=ablation, trigger=trigger, where=where, rows=4
    )
    slow = uncached(family, PROMPTS, 8, ablation, trigger, where)
    assert [g.tokens for g in found] == slow
    for g in found:
        text = g.prompt + g.tokens
        read = range(len(g.prompt) - 1, len(text) if g.stopped else len(text) - 1)
        assert list(g.fired) == [i for i in read if text[i] == trigger]
    assert any(g.fired for g in found)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["zero", "patch", "steer"])
def test_changed_throughout_equals_uncached(family, kind):
    """No plain run is kept where every token is the changed run's; values may be a prompt's own."""
    addresses = [(0, "z"), (1, "z"), (1, "post"), (2, "post")]
    values = site_values(family, PROMPTS, addresses)
    ablation = make_ablation(family, LABELS, kind, values=None if kind == "zero" else values)
    found = generate(family, PROMPTS, max_new_tokens=8, change=ablation, where="all", rows=2)
    slow = []
    for i, prompt in enumerate(PROMPTS):
        own = {at: value[i : i + 1] for at, value in values.items()}
        one = make_ablation(family, LABELS, kind, values=None if kind == "zero" else own)
        slow += uncached(family, [prompt], 8, one, None, "all")
    assert [g.tokens for g in found] == slow
    assert slow != uncached(family, PROMPTS, 8)
    for g in found:
        end = len(g.prompt) + len(g.tokens)
        assert list(g.fired) == list(range(len(g.prompt) - 1, end if g.stopped else end - 1))
    other = make_ablation(family, ["L0H0"])
    both = generate_each(family, PROMPTS, [ablation, other], max_new_tokens=8, where="all")
    assert both[0] == found
    assert both[1] == generate(family, PROMPTS, max_new_tokens=8, change=other, where="all")
    # Beside a plain text, the runs are shared as ever.
    beside = generate_each(family, PROMPTS, [None, ablation], max_new_tokens=8, where="all")
    assert [g.tokens for g in beside[1]] == slow


@pytest.mark.parametrize("rows", [2, 96])
@pytest.mark.parametrize("where", [2, "all"])
def test_each_of_several_ablations_writes_what_it_writes_alone(family_models, where, rows):
    """Texts part from each other at different steps; those that never do share one run."""
    model = family_models["qwen2"]
    plain = generate(model, PROMPTS, max_new_tokens=8)
    written = [token for g in plain for token in g.tokens[:-1]]
    trigger = max(set(written), key=written.count)
    sets = (["L0H1"], LABELS, ["L1N4"], ["L2.mlp_out", "L1.attn_out"])
    ablations = [None, *(make_ablation(model, labels) for labels in sets), None]
    options = {"max_new_tokens": 8, "where": where}
    found = generate_each(model, PROMPTS, ablations, trigger=trigger, rows=rows, **options)
    alone = [
        generate(model, PROMPTS, change=made, trigger=trigger, **options) for made in ablations[1:5]
    ]
    assert found == [plain, *alone, plain]
    assert len({tuple(g.tokens for g in texts) for texts in found}) >= 3
    assert len({g.tokens for texts in found for g in texts}) < len(PROMPTS) * 5


@pytest.mark.parametrize("where", [1, "all"])
@pytest.mark.long
def test_at_every_step_without_a_trigger(family_models, where):
    model = family_models["llama"]
    ablation = make_ablation(model, LABELS)
    found = generate(model, PROMPTS, max_new_tokens=8, change=ablation, where=where)
    slow = uncached(model, PROMPTS, 8, ablation, None, where)
    assert [g.tokens for g in found] == slow
    assert slow != uncached(model, PROMPTS, 8), "the ablation changed nothing"


def test_changing_nothing_is_the_plain_text(family_models):
    model = family_models["qwen2"]
    nothing = make_ablation(
        model, ["L1.resid_post"], "steer", values={(1, "resid_post"): torch.zeros(1, 1, 32)}
    )
    found = generate(model, PROMPTS, max_new_tokens=8, change=nothing)
    assert [g.tokens for g in found] == uncached(model, PROMPTS, 8)


def test_stop_text_and_end_token(family_models):
    model = family_models["llama"]
    first = generate(model, PROMPTS[:1], max_new_tokens=8)[0]
    mark = f"<{first.tokens[2]}>"
    cut = generate(model, PROMPTS[:1], max_new_tokens=8, stop=[mark])[0]
    assert cut.stopped
    assert mark in cut.text
    assert len(cut.tokens) <= 3


def test_bad_input(family_models):
    model = family_models["llama"]
    zeroed = make_ablation(model, ["L0H1"])
    with pytest.raises(InterpError, match="positions"):
        generate(model, PROMPTS, max_new_tokens=100)
    with pytest.raises(InterpError, match="no text"):
        generate(model, PROMPTS, max_new_tokens=0)
    with pytest.raises(InterpError, match="nothing to change"):
        generate(model, PROMPTS, max_new_tokens=2, trigger=5)
    with pytest.raises(InterpError, match="shorter text"):
        generate(model, PROMPTS, max_new_tokens=2, change=zeroed, where=5)
    with intervene(model, zeroed):
        for options in ({"change": zeroed}, {"change": zeroed, "trigger": 5}):
            with pytest.raises(InterpError, match="use intervene\\(\\) alone"):
                generate(model, PROMPTS, max_new_tokens=2, **options)
        with pytest.raises(InterpError, match="no text"):
            generate(model, PROMPTS, max_new_tokens=0)


def intervened_slowly(model, changes, steps, on=None):
    """Every token from a whole run of all texts: the tokens, and the logits they were chosen by."""
    texts, seen = [list(prompt) for prompt in PROMPTS], [[] for _ in PROMPTS]
    live = set(range(len(texts)))
    with intervene(model, changes, on=on):
        for _ in range(steps):
            logits = model.last_logits(texts)
            for row in sorted(live):
                seen[row].append(logits[row])
                token = int(logits[row].argmax())
                if token == 2:
                    live.discard(row)
                else:
                    texts[row].append(token)
    return [tuple(t[len(p) :]) for t, p in zip(texts, PROMPTS, strict=True)], seen


class Watched(IntervenedText):
    """Keeps the logits of every step, by prompt."""

    def _next(self, rows, last):
        logits = self.decoder.logits(self.decoder.ln_final(last))
        for row, text in enumerate(rows):
            if text is not None:
                self.seen[text.number].append(logits[row])
        return super()._next(rows, last)


def changes_of(model, where):
    """One intervention of each kind, none of which undoes another."""
    direction = torch.linspace(-1, 1, model.d_model)
    return {
        "add": add("L1.resid_post", 3 * direction, positions=where),
        "zero": zero("L0H1", positions=where),
        "mean": mean(model, "L1N4", PROMPTS, positions=where),
        "project_out": project_out("L2.resid_pre", direction, positions=where),
        "scale": scale("L1.mlp_out", 3.0, positions=where),
    }


WHERE = ["all", "last", -2, 1, "first", [0, 1, 2, -1, 0]]


@pytest.mark.parametrize(
    ("name", "where"), [*(("gpt2", where) for where in WHERE), ("gemma2", "all"), ("qwen2", "last")]
)
def test_inside_intervene_equals_uncached(family_models, name, where, monkeypatch):
    """Token for token and logit for logit, each kind alone and all together.

    "last" and negative numbers move with the text: what was last a step ago is plain again.
    """
    model = family_models[name]
    plain = [g.tokens for g in generate(model, PROMPTS, max_new_tokens=6)]
    kinds = changes_of(model, where)
    monkeypatch.setattr(intervened, "IntervenedText", Watched)
    moved = 0
    for changes in (*([one] for one in kinds.values()), list(kinds.values())):
        Watched.seen = [[] for _ in PROMPTS]
        slow, logits = intervened_slowly(model, changes, 6)
        with intervene(model, changes) as report:
            found = generate(model, PROMPTS, max_new_tokens=6, rows=3)
        assert [g.tokens for g in found] == slow
        for mine, theirs in zip(Watched.seen, logits, strict=True):
            torch.testing.assert_close(torch.stack(mine), torch.stack(theirs), atol=2e-4, rtol=1e-4)
        assert all(fired.tokens for fired in report.fired)
        moved += slow != plain
    assert moved


def test_what_cannot_be_cached_runs_whole_texts(family_models):
    """A pattern, a value read off many tokens, and a model without the fast engine."""
    model = family_models["llama"]
    heads = switch_off(model, "uniform").change(["L0H1", "L1H2"])
    key = zero("L1KV0.k")
    slowless = replace(model, decoder=None, engine_reason="left out")
    for changes in (heads, [scale("L1H1.pattern", 0.5)], [key]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected, _ = intervened_slowly(model, changes, 4)
            with intervene(model, changes):
                found = generate(model, PROMPTS, max_new_tokens=4)
            with intervene(slowless, changes):
                other = generate(slowless, PROMPTS, max_new_tokens=4)
        assert [g.tokens for g in found] == [g.tokens for g in other] == expected


@pytest.mark.parametrize("label", ["L0H0.pattern", "L0H0"])
def test_texts_longer_than_the_model_are_refused_before_they_are_begun(family_models, label):
    """Cached or not: a pattern is run uncached."""
    model = family_models["gpt2"]
    limit = model.max_positions
    prompts = [tuple(range(5, 5 + n)) for n in (3, limit - 4)]
    with intervene(model, zero(label)) as report:
        with pytest.raises(InterpError, match=f"{limit + 2} in all, .* has {limit} positions"):
            generate(model, prompts, max_new_tokens=6)
        assert report.fired[0].tokens == 0
        assert len(generate(model, prompts, max_new_tokens=4)) == 2


def test_marks_of_a_task_stay_where_they_are(family_models):
    """Names marked in a task are places of its prompts, however long the text has grown."""
    model = family_models["qwen2"]
    pairs = [PromptPair(clean=p, answers=(5,), positions={"two": 2, "end": -1}) for p in PROMPTS]
    task = Task(name="marked", pairs=tuple(pairs), metric=METRICS["log_odds"])
    for name, fixed in (("two", [2] * 5), ("end", [len(p) - 1 for p in PROMPTS])):
        texts = []
        for where, on in ((name, task), (fixed, None)):
            with intervene(model, add("L0.resid_post", torch.ones(32), positions=where), on=on):
                texts.append(generate(model, task, max_new_tokens=5))
        assert texts[0] == texts[1]


def test_all_tokens_are_changed_unless_said_otherwise(family_models):
    """The default of `where` is what a hook without positions does."""
    model = family_models["llama"]
    ablation = make_ablation(model, LABELS)
    found = generate(model, PROMPTS, max_new_tokens=6, change=ablation)
    with intervene(model, ablation):
        hooked = generate(model, PROMPTS, max_new_tokens=6)
        odds = model.last_logits(PROMPTS).double().softmax(-1)[:, 7].numpy()
    assert [g.tokens for g in found] == [g.tokens for g in hooked]
    assert ablate(model, PROMPTS, ablation, tokens=7).probabilities[1, :, 0] == pytest.approx(odds)


def test_trigger_of_several_tokens_is_refused(toy):
    zero = make_ablation(toy, ["L0H1"])
    with pytest.raises(InterpError, match="one token"):
        generate(toy, ["<bos> a"], max_new_tokens=2, change=zero, trigger="a b")
