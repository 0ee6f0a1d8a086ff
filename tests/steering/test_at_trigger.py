"""Vectors added at triggered tokens: an uncached loop, a planted direction, and bad input."""

import pytest
import torch

import interp
from interp.core.errors import InterpError
from interp.models.loading import load_model
from interp.neurons.glu import glu_vectors
from interp.runs.hooks import intervene
from interp.runs.kinds import add
from interp.steering.at_trigger import steer_at_trigger, vector_steering
from interp.tasks.registry import load_task
from tests.families import random_task


def looped(model, prompt, vectors, scale, layers, trigger, steps):
    """Greedy text, everything run anew at every token; and where the trigger fired."""
    text, fired = list(prompt), []
    for _ in range(steps):
        last, made = len(text) - 1, []
        if trigger is None or text[-1] == trigger:
            fired.append(last)
            made = [
                add(f"L{i}.resid_post", scale * v / v.norm(), positions=[last])
                for i in layers
                for v in [vectors[i] if vectors.ndim == 2 else vectors]
            ]
        with intervene(model, made):
            text.append(int(model.last_logits([tuple(text)]).argmax()))
    return tuple(text[len(prompt) :]), tuple(fired)


@pytest.mark.parametrize("family_name", ["llama", "gemma2"])
@pytest.mark.parametrize("each", [True, False])
def test_equals_an_uncached_loop(family_name, each, family_models):
    model = family_models[family_name]
    prompts = [pair.clean for pair in random_task().pairs]
    vectors = torch.randn(
        (model.n_layers, model.d_model) if each else (model.d_model,),
        generator=torch.Generator().manual_seed(0),
    )
    plainly = [looped(model, p, vectors, 0, [], None, 6)[0] for p in prompts]
    trigger = plainly[0][1]
    for fires in (trigger, None):
        found = steer_at_trigger(
            model, prompts, vectors, scale=9, max_new_tokens=6, layers=[0, 2], trigger=fires
        )
        for prompt, plain, made, tokens in zip(
            prompts, found.plain, found.steered, plainly, strict=True
        ):
            expected, fired = looped(model, prompt, vectors, 9, [0, 2], fires, 6)
            n = len(made.tokens)  # shorter where the text ended by itself
            assert made.tokens == expected[:n]
            assert plain.tokens == tokens[: len(plain.tokens)]
            assert made.fired[:n] == tuple(at for at in fired if at < len(prompt) + n)[:n]
    assert any(a.tokens != b.tokens for a, b in zip(found.plain, found.steered, strict=True))


def test_what_the_planted_neuron_writes_turns_the_verdict():
    """toy-verification: 16 times the neuron's value vector is what it writes where it fires."""
    model, task = load_model("toy-verification"), load_task("toy-verification")
    value = glu_vectors(model, 1, 3).value
    valid = [model.tokenize(pair.clean).tokens for pair in task.pairs]
    invalid = [model.tokenize(pair.corrupted).tokens for pair in task.pairs]
    bracket, semicolon = (model.single_token(word) for word in ("(", ";"))
    for prompts, sign, before, after in (
        (invalid, 1, "not", "this"),
        (valid, -1, "this", "not"),
    ):
        options = {"scale": sign * 16 * float(value.norm()), "max_new_tokens": 1, "layers": [2]}
        found = steer_at_trigger(model, prompts, value, trigger=bracket, **options)
        table = found.to_dataframe()
        assert {text.strip() for text in table["plain"]} == {before}
        assert {text.strip() for text in table["steered"]} == {after}
        assert (table["fired"] == 1).all()
        elsewhere = steer_at_trigger(model, prompts, value, trigger=semicolon, **options)
        assert elsewhere.steered == elsewhere.plain
        wrong = options | {"scale": -options["scale"]}
        assert (
            steer_at_trigger(model, prompts, value, trigger=bracket, **wrong)
            .to_dataframe()["steered"]
            .str.strip()
            .eq(before)
            .all()
        )


def test_bad_input(family_models):
    model = family_models["llama"]
    fine = torch.ones(model.d_model)
    for vectors, scale, more in (
        (torch.ones(model.d_model + 1), 1, {}),
        (torch.ones(model.n_layers + 1, model.d_model), 1, {}),
        (torch.zeros(model.d_model), 1, {}),
        (fine * float("nan"), 1, {}),
        (fine, float("inf"), {}),
        (fine, 1, {"layers": [7]}),
        (fine, 1, {"site": "attn_out"}),
    ):
        with pytest.raises(InterpError):
            vector_steering(model, vectors, scale=scale, **more)
    with pytest.raises(InterpError, match="no tokeniser"):
        steer_at_trigger(model, [(3, 4)], fine, scale=1, max_new_tokens=2, trigger="two words")
    assert interp.steering.steer_at_trigger is steer_at_trigger
    assert interp.steering.vector_steering is vector_steering
