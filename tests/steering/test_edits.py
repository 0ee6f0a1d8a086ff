"""Steering does what its formula says, the same in every way of running it, and counts it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers as t

from interp.core.chat_prompts import PLAIN, ChatFormat, ChatPrompts
from interp.core.errors import InterpError
from interp.models.loading import wrap
from interp.results.direction import Direction, random_direction
from interp.runs.capture import run_with_cache
from interp.runs.changed_runs import ChangedRuns
from interp.runs.generation import generate
from interp.runs.hooks import intervene
from interp.runs.kinds import add, project_out
from interp.runs.losses import text_losses
from interp.runs.next_tokens import ablate
from interp.runs.stored_runs import keep_runs
from interp.steering import runs as steered
from interp.steering.at_trigger import vector_steering
from interp.steering.doses import dose_response
from interp.steering.edits import (
    AffineEdit,
    ablate_direction,
    add_direction,
    affine_edit,
    condition_similarity,
    conditional_steering,
    null_space_direction,
    patch_direction,
    residual_sites,
)
from interp.steering.runs import generate_steered, run_steered, steer, steering_change
from interp.steering.weight_edits import READS, _folded, expert_writers, orthogonalise_weights
from tests.families import tiny

PROMPTS = [tuple(range(5 + i, 5 + i + n)) for i, n in enumerate((9, 6, 9, 7, 1))]
PUBLISHED = ("resid_pre", "attn_out", "mlp_out")
"""Where arXiv 2406.11717 hooks."""
GATE = [1.0, 0.0, 0.5, 1.0, 1.0]


def direction(model, *, seed=0, scale=3.0, **options):
    generator = torch.Generator().manual_seed(seed)
    vector = scale * torch.randn(model.d_model, generator=generator, dtype=torch.float64)
    about = {"kind": "harmful-harmless", "site": "resid_pre", "layer": 1, "position": -1}
    about |= {"sign": 1, "n": (4, 4), "model_hash": model.hash, "vector": vector}
    return Direction(**(about | options))


def methods(model, phase="both"):
    r = direction(model)
    some = torch.randn(20, model.d_model, generator=torch.Generator().manual_seed(3))
    return {
        "ablate": ablate_direction(model, r, phase=phase),
        "ablate two": ablate_direction(model, r, direction(model, seed=7), phase=phase),
        "some layers": ablate_direction(model, r, layers=[1], phase=phase),
        "add": add_direction(model, r, coefficient=-1.0, phase=phase),
        "patch": patch_direction(model, r, value=5.0, layers=[0, 2], phase=phase),
        "affine": affine_edit(model, r, some[0], coefficient=1.0, phase=phase),
        "null space": null_space_direction(model, r, some[:8], some[8:], phase=phase),
        "gated": add_direction(model, r, phase=phase).gated(GATE),
        "published sites": ablate_direction(model, r, sites=PUBLISHED, phase=phase),
        "last token": ablate_direction(model, r, positions=[-1], phase=phase),
        "elsewhere": add_direction(
            model, r, sites=["attn_out", "resid_post"], layers=[0, 2], positions=(-1,), phase=phase
        ),
    }


def through_hooks(model, steering, prompts=PROMPTS, **options):
    with steer(model, steering, prompts) as tally:
        seen = run_with_cache(model, prompts, **options)
    return seen, tally


# -- ablation ------------------------------------------------------------------------------


def test_nothing_is_left_at_any_residual_site(family):
    """Biases and post-norms included, after the last block too."""
    r = direction(family)
    sites = sorted({site for _, site in residual_sites(family)})
    seen, _ = through_hooks(family, ablate_direction(family, r), sites=sites)
    plain = run_with_cache(family, PROMPTS, sites=sites)
    for at in seen.values:
        assert (seen[at].double() @ r.unit).abs().max() < 1e-5
        assert (plain[at].double() @ r.unit).abs().max() > 0.1
    assert {(0, "resid_pre"), (2, "resid_post")} <= set(residual_sites(family))
    run = run_steered(family, PROMPTS, ablate_direction(family, r), layers=[0, 1, 2])
    assert (run.states.double() @ r.unit).abs().max() < 1e-5


def test_module_outputs_alone_are_as_good_where_hooked_behind_the_post_norm(family):
    """The stream's edit equals the published hooks at block input and module outputs."""
    r = direction(family)
    labels = [f"L{i}.{site}" for i in range(3) for site in ("resid_pre", "attn_out", "mlp_out")]
    with intervene(family, [project_out(label, r.vector) for label in labels]):
        published = family.last_logits(PROMPTS)
    for sites in (None, PUBLISHED):
        ours = run_steered(family, PROMPTS, ablate_direction(family, r, sites=sites)).logits
        torch.testing.assert_close(ours, published, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("positions", [(-1,), (-3, -1), range(-6, 0)])
def test_positions_are_counted_from_each_prompt_s_end(family, positions):
    """Equal to interventions at these tokens; no other token is touched."""
    r, prompts = direction(family), PROMPTS[:4]
    made = [
        project_out(f"L{i}.resid_pre", r.vector, positions=[k] * len(prompts))
        for i in range(3)
        for k in positions
    ]
    with intervene(family, made):
        expected = family.last_logits(prompts)
    steering = ablate_direction(family, r, sites=["resid_pre"], positions=positions)
    run = run_steered(family, prompts, steering)
    torch.testing.assert_close(run.logits, expected, atol=1e-4, rtol=1e-4)
    assert run.tally.tokens.tolist() == [3 * len(positions)] * len(prompts)
    seen, tally = through_hooks(family, steering, prompts, sites=["resid_pre"])
    along = (seen[0, "resid_pre"].double() @ r.unit).abs()
    for i, row in enumerate(prompts):
        at = [len(row) + k for k in positions]
        rest = [k for k in range(len(row)) if k not in at]
        real = along[i][seen.mask[i]]
        assert real[at].max() < 1e-5
        assert not rest or real[rest].min() > 1e-5
    assert tally.tokens.tolist() == run.tally.tokens.tolist()


def test_tokens_all_prompts_begin_with_are_not_all_changed_alike(family_models):
    """Prompts of unequal lengths with one beginning: a position from the end is another token."""
    model = family_models["llama"]
    start = (9, 8, 7, 6, 5, 4, 3)
    prompts = [start, (*start, 11, 12, 13), (*start, 14)]
    steering = ablate_direction(model, direction(model), positions=[-3, -2])
    run = run_steered(model, prompts, steering)
    with steer(model, steering, prompts):
        expected = model.last_logits(prompts)
    torch.testing.assert_close(run.logits, expected, atol=1e-4, rtol=1e-4)
    alone = [run_steered(model, [row], steering).logits[0] for row in prompts]
    torch.testing.assert_close(run.logits, torch.stack(alone), atol=1e-4, rtol=1e-4)


def test_sites_and_positions_that_cannot_be_are_refused(family_models):
    model = family_models["llama"]
    r = direction(model)
    for sites in (["z"], ["q"], []):
        with pytest.raises(InterpError, match="as wide as the stream"):
            ablate_direction(model, r, sites=sites)
    for positions in ([], [0], [-1, 2]):
        with pytest.raises(InterpError, match="-1 for the last token"):
            add_direction(model, r, positions=positions)
    far = ablate_direction(model, r, positions=[-2])
    with pytest.raises(InterpError, match="a prompt of 1 tokens"):
        run_steered(model, PROMPTS, far)
    # The generated tokens are the phase's: a position in the prompt does not reach them.
    both = add_direction(model, r, positions=[-1])
    _, tally = generate_steered(model, PROMPTS, both, max_new_tokens=4)
    assert tally.tokens.tolist() == [1 + 3] * 5
    only = add_direction(model, r, positions=[-1], phase="prefill")
    _, tally = generate_steered(model, PROMPTS, only, max_new_tokens=4)
    assert tally.tokens.tolist() == [1] * 5


def test_a_space_is_ablated_not_its_vectors_one_by_one(family_models):
    model = family_models["llama"]
    first = direction(model)
    second = replace(first, vector=first.vector + direction(model, seed=1).vector)
    steering = ablate_direction(model, first, second)
    states = run_steered(model, PROMPTS, steering, layers=[2]).states.double()
    for r in (first, second):
        assert (states @ r.unit).abs().max() < 1e-5
    with pytest.raises(InterpError, match="dependent"):
        ablate_direction(model, first, replace(first, vector=2 * first.vector))


# -- the other edits -----------------------------------------------------------------------


def component(model, steering, r, layer=1, site="resid_pre"):
    seen, _ = through_hooks(model, steering, sites=[site], layers=[layer])
    return seen[layer, site].double()[seen.mask] @ r.unit


def test_patch_and_affine_set_the_component(family):
    r, reference = direction(family), torch.randn(family.d_model, dtype=torch.float64)
    found = component(family, patch_direction(family, r, value=2.5), r)
    torch.testing.assert_close(found, torch.full_like(found, 2.5), atol=1e-5, rtol=0)
    found = component(family, affine_edit(family, r, reference, coefficient=-1.0), r)
    expected = torch.full_like(found, float(reference @ r.unit) - r.norm)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_addition_is_raw_and_signed_towards_refusal(family_models):
    model = family_models["gemma2"]
    r = direction(model)
    towards = replace(r, kind="task", sign=-1)
    plain = run_with_cache(model, PROMPTS, sites=["resid_pre"], layers=[1])[1, "resid_pre"]
    for one, change in ((r, r.vector), (towards, -r.vector)):
        seen, tally = through_hooks(
            model, add_direction(model, one), sites=["resid_pre"], layers=[1]
        )
        moved = (seen[1, "resid_pre"] - plain)[seen.mask].double()
        torch.testing.assert_close(moved, change.expand_as(moved), atol=1e-4, rtol=0)
        np.testing.assert_allclose(tally.norm, r.norm, rtol=1e-5)
        assert tally.tokens.tolist() == [9, 6, 9, 7, 1]


def test_add_then_subtract_is_the_plain_run(family):
    r = direction(family)
    plus, minus = (add_direction(family, r, coefficient=c) for c in (1.0, -1.0))
    plain = family.last_logits(PROMPTS)
    with steer(family, plus, PROMPTS):
        moved = family.last_logits(PROMPTS)
        with steer(family, minus, PROMPTS):
            found = family.last_logits(PROMPTS)
    torch.testing.assert_close(found, plain, atol=2e-5, rtol=1e-5)
    assert (moved - plain).abs().max() > 0.01
    torch.testing.assert_close(family.last_logits(PROMPTS), plain, atol=0, rtol=0)


def test_null_space_spares_the_protected_and_moves_the_others(family_models):
    model = family_models["llama"]
    d, r = model.d_model, direction(model)
    generator = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]
    protected = torch.randn(60, d // 2, generator=generator).double() @ basis[: d // 2]
    steered = (
        4 * basis[-1] + torch.randn(40, d // 2, generator=generator).double() @ basis[: d // 2]
    )
    steering = null_space_direction(model, r, protected, steered, strength=2.0, ridge=1e-6)
    edit = steering.edits[1, "resid_pre"]
    nobody = torch.zeros(60, dtype=torch.long)
    assert edit.delta(protected, nobody).abs().max() < 1e-9
    moved = edit.delta(steered, nobody[:40])
    torch.testing.assert_close(moved, 2 * r.vector.expand_as(moved), atol=1e-4, rtol=0)
    strict = null_space_direction(model, r, protected, steered, strength=2.0, ridge=1e4)
    assert strict.edits[1, "resid_pre"].delta(steered, nobody[:40]).norm() < 0.5 * moved.norm()
    with pytest.raises(InterpError, match="null space"):
        null_space_direction(model, r, protected, steered, nullity=0.0)


def test_condition(family_models):
    model = family_models["llama"]
    condition = torch.zeros(model.d_model)
    condition[0] = 2.0
    states = torch.zeros(3, model.d_model)
    states[0, 0], states[1, 1], states[2, 0] = 3.0, 3.0, -3.0
    found = condition_similarity(states, condition)
    torch.testing.assert_close(found, torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64))
    add = add_direction(model, direction(model))
    assert conditional_steering(add, found, 0.5).gate.tolist() == [1, 0, 1]
    assert conditional_steering(add, found, 0.5, steer_above=False).gate.tolist() == [0, 1, 0]


# -- the three ways to run -----------------------------------------------------------------


@pytest.mark.parametrize("phase", ["prefill", "decode", "both"])
def test_engine_equals_hooks(family, phase):
    plain = family.last_logits(PROMPTS)
    for name, steering in methods(family, phase).items():
        seen, slow = through_hooks(family, steering, sites=["resid_post"], positions="last")
        run = run_steered(family, PROMPTS, steering, layers=[0, 1, 2])
        torch.testing.assert_close(run.logits, seen.logits, atol=1e-4, rtol=1e-4, msg=name)
        states = torch.stack([seen[layer, "resid_post"] for layer in range(3)], 1)
        torch.testing.assert_close(run.states, states, atol=1e-4, rtol=1e-4, msg=name)
        assert run.tally.tokens.tolist() == slow.tokens.tolist()
        np.testing.assert_allclose(run.tally.norm, slow.norm, rtol=1e-3)
        if phase == "decode":
            assert torch.equal(seen.logits, plain)
            assert run.tally.tokens.sum() == 0
        else:
            assert (seen.logits - plain).abs().max() > 1e-3
    without = replace(family, decoder=None, engine_reason="none")
    run_without = run_steered(without, PROMPTS, steering, layers=[0, 1, 2])
    torch.testing.assert_close(run_without.states, run.states, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("site", ["q", "pre", "pattern"])
def test_states_of_a_site_that_is_no_stream_are_refused_on_every_model(family_models, site):
    model = family_models["llama"]
    for one in (model, replace(model, decoder=None, engine_reason="none")):
        with pytest.raises(InterpError, match="as wide as the stream"):
            run_steered(one, PROMPTS, layers=[0], site=site)


BEGUN = [(50, 51, 52, 53, *row) for row in PROMPTS]
"""Prompts that begin alike, as those of a chat template with a system prompt do."""


@pytest.fixture
def shared(monkeypatch):
    """How many tokens every batch ran once for all of its rows."""
    seen, count = [], steered.shared_tokens

    def counted(*given):
        seen.append(count(*given))
        return seen[-1]

    monkeypatch.setattr(steered, "shared_tokens", counted)
    return seen


@pytest.mark.parametrize("phase", ["prefill", "decode", "both"])
def test_a_beginning_that_is_run_once_counts_for_every_row(family, phase, shared):
    for name, steering in methods(family, phase).items():
        shared.clear()
        run = run_steered(family, BEGUN, steering, layers=[0, 1, 2])
        assert shared == [0 if steering.gate is not None else 4], name
        seen, slow = through_hooks(family, steering, BEGUN, sites=["resid_post"], positions="last")
        torch.testing.assert_close(run.logits, seen.logits, atol=1e-4, rtol=1e-4, msg=name)
        states = torch.stack([seen[layer, "resid_post"] for layer in range(3)], 1)
        torch.testing.assert_close(run.states, states, atol=1e-4, rtol=1e-4, msg=name)
        assert run.tally.tokens.tolist() == slow.tokens.tolist()
        np.testing.assert_allclose(run.tally.norm, slow.norm, rtol=1e-3)
        sites = [one.to_dataframe().set_index("site").tokens for one in (run.tally, slow)]
        assert sites[0].to_dict() == sites[1].to_dict()


def test_what_differs_by_row_is_never_shared(family_models, shared):
    """A gate, or a shift of its own for every row; and no row's last token, even of equal rows."""
    model = family_models["llama"]
    steering = add_direction(model, direction(model))
    ((at, edit),) = steering.edits.items()
    rows = torch.arange(1.0, 6.0, dtype=torch.float64)[:, None] * edit.shift
    own = replace(steering, edits={at: replace(edit, shift=rows)})
    for one in (own, steering.gated(GATE), steering.gated([1.0] * 5)):
        run = run_steered(model, BEGUN, one)
        seen, slow = through_hooks(model, one, BEGUN, sites=["resid_post"], positions="last")
        torch.testing.assert_close(run.logits, seen.logits, atol=1e-4, rtol=1e-4)
        assert run.tally.tokens.tolist() == slow.tokens.tolist()
        np.testing.assert_allclose(run.tally.norm, slow.norm, rtol=1e-4)
    assert shared == [0, 0, 0]
    shared.clear()
    run = run_steered(model, [BEGUN[0]] * 3, steering)
    assert shared == [len(BEGUN[0]) - 1]
    assert run.tally.tokens.tolist() == [len(BEGUN[0])] * 3
    assert torch.equal(run.logits[0], run.logits[2])
    made, tally = generate_steered(model, BEGUN, steering, max_new_tokens=6)
    alone, slow = generate_steered(model, BEGUN, steering, max_new_tokens=6, rows=1)
    assert [one.tokens for one in made] == [one.tokens for one in alone]
    assert tally.tokens.tolist() == slow.tokens.tolist()


@pytest.mark.parametrize(("phase", "changed"), [("decode", -1), ("prefill", 0)])
def test_phases_are_the_tokens_of_the_prompt_and_those_after(family_models, phase, changed):
    """A prompt of one token and one more: plain interventions at one place are the reference."""
    model, text = family_models["llama"], (5, 6)
    r = direction(model)
    with intervene(model, [add("L1.resid_pre", r.vector, positions=[changed])]):
        expected = model.last_logits([text])
    with steer(model, add_direction(model, r, phase=phase), [text[:1]]):
        found = model.last_logits([text])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_gate_of_zero_is_bit_equal(family_models):
    model = family_models["olmo2"]
    gated = add_direction(model, direction(model)).gated(GATE)
    moved, plain = (run_steered(model, PROMPTS, s).logits for s in (gated, None))
    assert torch.equal(moved[1], plain[1])
    assert not torch.equal(moved[0], plain[0])
    run = run_steered(model, PROMPTS, gated)
    assert run.tally.tokens.tolist() == [9, 0, 9, 7, 1]
    norm = direction(model).norm
    np.testing.assert_allclose(run.tally.norm, [norm, np.nan, norm / 2, norm, norm], rtol=1e-5)


def test_some_of_its_prompts_are_steered_as_among_all(family_models):
    model = family_models["llama"]
    steering = add_direction(model, direction(model))
    ((at, edit),) = steering.edits.items()
    rows = torch.arange(1.0, 6.0, dtype=torch.float64)[:, None] * edit.shift
    own = replace(steering, edits={at: replace(edit, shift=rows)})
    for one in (own, steering.gated(GATE), own.gated(GATE), steering):
        whole = run_steered(model, PROMPTS, one).logits
        part = run_steered(model, [PROMPTS[3], PROMPTS[0]], one.only([3, 0])).logits
        torch.testing.assert_close(part, whole[[3, 0]], atol=1e-5, rtol=0)
    assert steering.gated(GATE).only([0, 3]).gate is None
    assert steering.gated(GATE).only([0, 1]).gate is not None


def uncached(model, steering, steps):
    """Every token from whole hooked passes, one prompt at a time; and the tokens changed."""
    texts, changed = [], []
    for i, prompt in enumerate(PROMPTS):
        one = steering if steering.gate is None else replace(steering, gate=steering.gate[[i]])
        text = list(prompt)
        for _ in range(steps):
            with steer(model, one, [prompt]) as tally:
                token = int(model.last_logits([text]).argmax())
            if token == 2:
                break
            text.append(token)
        texts.append(tuple(text[len(prompt) :]))
        changed.append(int(tally.tokens[0]))
    return texts, changed


@pytest.mark.parametrize(
    ("name", "phase"),
    [
        ("ablate", "both"),
        ("add", "decode"),
        ("gated", "both"),
        ("add", "prefill"),
        ("last token", "prefill"),
        ("elsewhere", "both"),
    ],
)
def test_cached_texts_equal_uncached(family, phase, name):
    steering = methods(family, phase)[name]
    made, tally = generate_steered(family, PROMPTS, steering, max_new_tokens=6, rows=3)
    texts, changed = uncached(family, steering, 6)
    assert [one.tokens for one in made] == texts
    assert tally.tokens.tolist() == changed


def test_steering_changes_texts_and_none_is_the_plain_text(family_models):
    model = family_models["llama"]
    plain, tally = generate_steered(model, PROMPTS, max_new_tokens=8, stop=["<"])
    assert plain == generate(model, PROMPTS, max_new_tokens=8, stop=["<"])
    assert tally.tokens.sum() == 0
    assert "nothing" in str(tally)
    plain = generate(model, PROMPTS, max_new_tokens=8)
    for phase in ("prefill", "decode", "both"):
        steering = add_direction(model, direction(model, scale=6.0), phase=phase)
        made, tally = generate_steered(model, PROMPTS, steering, max_new_tokens=8)
        assert [one.tokens for one in made] != [one.tokens for one in plain], phase
        first = [one.tokens[:1] for one in made] == [one.tokens[:1] for one in plain]
        assert first == (phase == "decode")
        assert "L1.resid_pre" in str(tally)
        mark = " ".join(f"<{token}>" for token in made[0].tokens[:2])
        cut, stopped = generate_steered(model, PROMPTS, steering, max_new_tokens=8, stop=[mark])
        assert cut[0].tokens == made[0].tokens[:2]
        assert stopped.tokens[0] == {"prefill": 9, "decode": 1, "both": 10}[phase]


# -- weights -------------------------------------------------------------------------------


def test_a_norm_behind_the_embedding_is_refused(family_models):
    model = family_models["bloom"]
    with pytest.raises(InterpError, match="a norm behind the embedding"):
        orthogonalise_weights(model, direction(model))


@pytest.mark.parametrize("name", ["granite", "phi", "opt", "gptj"])
def test_weights_of_other_layouts_equal_hooks(family_models, name):
    """Factors, positions, an unembedding with a bias, a norm that two parts share."""
    model = family_models[name]
    r = direction(model)
    edit = orthogonalise_weights(model, r)
    wanted = run_steered(model, PROMPTS, ablate_direction(model, r)).logits
    found = run_steered(edit.model, PROMPTS).logits
    assert (wanted - model.last_logits(PROMPTS)).abs().max() > 0.005
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_weights_equal_hooks(family):
    r = direction(family)
    ablation = ablate_direction(family, r)
    before = family.hash
    if family.post_norms:
        with pytest.raises(InterpError, match="post-norms"):
            orthogonalise_weights(family, r)
        edit = orthogonalise_weights(family, r, post_norms="fold")
    else:
        edit = orthogonalise_weights(family, r)
    assert edit.exact == (not family.post_norms)
    assert edit.residue < 1e-6
    assert family.hash == before != edit.model.hash
    run = run_steered(edit.model, PROMPTS, layers=[0, 1, 2])
    assert (run.states.double() @ r.unit).abs().max() < 1e-5
    wanted = run_steered(family, PROMPTS, ablation).logits
    plain = family.last_logits(PROMPTS)
    assert (wanted - plain).abs().max() > 0.01
    if edit.exact:
        torch.testing.assert_close(run.logits, wanted, atol=1e-4, rtol=1e-4)
    else:
        assert "gains" in str(edit.kept)
        assert (run.logits - wanted).abs().max() > 1e-3
    biases = sum("bias" in name for name in edit.edited)
    assert biases == (6 if family.family in ("gpt2", "gpt_neox") else 0)
    assert ("embedding 1" in edit.edited) == (family.family == "gpt2")
    tied = family.hf_model.config.tie_word_embeddings
    assert ("untied" in edit.kept["unembedding"]) == tied
    with pytest.raises(InterpError, match="read from"):
        ablate_direction(edit.model, r)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float64, 1e-12),
        (torch.float32, 1e-5),
        (torch.float16, 0.02),
        (torch.bfloat16, 0.1),
    ],
)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_weights_equal_hooks_in_every_dtype(name, dtype, tolerance):
    """Up to the type's rounding: about 10 units in the last place of logits around 1."""
    model = wrap(tiny(name, dtype), name=f"{name}-{dtype}")
    r = direction(model)
    edit = orthogonalise_weights(model, r)
    assert edit.model.dtype == dtype
    assert edit.residue < tolerance / 10
    wanted = run_steered(model, PROMPTS, ablate_direction(model, r)).logits.double()
    found = run_steered(edit.model, PROMPTS).logits.double()
    assert (found - wanted).abs().max() < tolerance
    assert (wanted - model.last_logits(PROMPTS).double()).abs().max() > 4 * tolerance


@pytest.fixture(scope="module")
def experts():
    """A tiny mixture of experts, Mixtral's shape."""
    torch.manual_seed(0)
    config = t.MixtralConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=24, max_position_embeddings=64,
        num_local_experts=3, num_experts_per_tok=2, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return wrap(t.AutoModelForCausalLM.from_config(config).eval(), name="tiny-mixtral")


def test_every_unknown_writer_of_experts_is_named(experts, family_models):
    names = expert_writers(experts)
    held = {
        name.replace("._original_component", ""): tensor
        for name, tensor in experts.hf_model.state_dict().items()
    }
    # What an expert writes is a sum over its inner width: the axis behind d_model.
    assert {tuple(held[name].shape) for name in names} == {(3, 32, 24)}
    assert sorted(names) == [f"model.layers.{k}.mlp.experts.down_proj" for k in (0, 1)]
    with pytest.raises(InterpError, match=r"2 of experts .*layers\.0-1\.mlp\.experts\.down_proj"):
        orthogonalise_weights(experts, direction(experts))
    assert expert_writers(family_models["llama"]) == ()
    other = replace(family_models["llama"], decoder=None, engine_reason="unheard of")
    with pytest.raises(InterpError, match="unheard of; its writers are not known; use"):
        orthogonalise_weights(other, direction(other))


def test_names_are_folded_only_where_none_is_missing():
    old = [f"h.{k}.experts.{e}.w2.weight" for k in range(2) for e in range(8)]
    assert _folded(old) == "h.0-1.experts.0-7.w2.weight"
    assert _folded(old[1:]).count("w2") == 15
    assert _folded([*old, "head.weight"]) == "h.0-1.experts.0-7.w2.weight, head.weight"
    inside = ("w1.weight", "w3.weight", "gate_up_proj", "gate_proj.weight", "up_proj.weight")
    assert all(READS.search(f"s.{name}") for name in inside)
    assert not any(READS.search(f"s.{name}") for name in ("w2.weight", "down_proj", "out.weight"))


def test_ablation_of_a_mixture_of_experts_is_exact(experts):
    r = direction(experts)
    run = run_steered(experts, PROMPTS, ablate_direction(experts, r), layers=[0, 1])
    assert (run.states.double() @ r.unit).abs().max() < 1e-5
    assert (run.logits - experts.last_logits(PROMPTS)).abs().max() > 1e-3


# -- the contract --------------------------------------------------------------------------


def test_mismatches_are_refused(family_models):
    model, other = family_models["llama"], family_models["mistral"]
    r = direction(model)
    with pytest.raises(InterpError, match="read from"):
        add_direction(other, r)
    steering = add_direction(model, r)
    with pytest.raises(InterpError, match="other weights"):
        run_steered(other, PROMPTS, steering)
    opened = ChatFormat("abc", True)
    chat = ChatPrompts(rows=tuple(PROMPTS), format=opened)
    with pytest.raises(InterpError, match="no chat template"):
        run_steered(model, chat, steering)
    closed = add_direction(model, replace(r, format=replace(opened, generation_prompt=False)))
    with pytest.raises(InterpError, match="generation prompt"):
        generate_steered(model, chat, closed, max_new_tokens=2)
    assert run_steered(model, chat, add_direction(model, replace(r, format=opened)))
    with pytest.raises(InterpError, match="5 are run"):
        run_steered(model, PROMPTS, steering.gated([1.0, 0.0]))
    with pytest.raises(InterpError, match="phase"):
        add_direction(model, r, phase="later")
    with pytest.raises(InterpError, match="length 0"):
        ablate_direction(model, replace(r, vector=0 * r.vector))
    with pytest.raises(InterpError, match="as wide"):
        add_direction(model, replace(r, site="post"))
    with pytest.raises(InterpError, match="positions"):
        generate_steered(model, PROMPTS, steering, max_new_tokens=100)
    with steer(model, steering, PROMPTS), pytest.raises(InterpError, match="inside"):
        run_steered(model, PROMPTS, steering)
    with (
        steer(model, steering, PROMPTS[:1]),
        pytest.raises(InterpError, match="made for n=1;"),
    ):
        model.last_logits(PROMPTS)
    assert r.format == PLAIN


def test_texts_that_do_not_begin_with_their_prompts_are_refused(family_models):
    """A steering knows a prompt's end by its number: another text would be steered in part."""
    model = family_models["llama"]
    steering = add_direction(model, direction(model), phase="prefill")
    short, longer = [(5, 6, 7)], [tuple(range(20, 35))]
    change = steering_change(model, steering, short)
    runs = keep_runs(model, longer, last=1, whole=True)
    other = "does not begin with the prompt"
    for call in (
        lambda: ablate(model, longer, change, tokens=[1]),
        lambda: generate(model, longer, max_new_tokens=2, change=change),
        lambda: ChangedRuns(runs=runs, change=change),
    ):
        with pytest.raises(InterpError, match=other):
            call()
    for block in (steer(model, steering, short), intervene(model, change)):
        with block:
            for call in (
                lambda: model.last_logits(longer),
                lambda: model.last_logits([short[0][:2]]),
                lambda: generate(model, longer, max_new_tokens=2),
            ):
                with pytest.raises(InterpError, match=other):
                    call()
            found = model.last_logits([(*short[0], 8)])
    assert (found - model.last_logits([(*short[0], 8)])).abs().max() > 1e-3
    with steer(model, steering, PROMPTS), pytest.raises(InterpError, match=other):
        model.last_logits(PROMPTS[::-1])
    with pytest.raises(InterpError, match="made for n=1"):
        ablate(model, [*short, *longer], change, tokens=[1])


def test_numbers_that_are_none_are_refused(family_models):
    """NaN would pass through every formula to the logits, or steer no prompt without a word."""
    model = family_models["llama"]
    r, d = direction(model), model.d_model
    added = add_direction(model, r)
    some = torch.randn(20, d, generator=torch.Generator().manual_seed(3))
    odd = some.clone()
    odd[0, 0] = np.nan
    similar = torch.tensor([0.5, 0.1])
    numbers = (np.nan, np.inf, "2", None, True)
    table = {
        lambda x: add_direction(model, r, coefficient=x): (*numbers, 1e308),
        lambda x: patch_direction(model, r, value=x): numbers,
        lambda x: affine_edit(model, r, some[0], coefficient=x): numbers,
        lambda x: affine_edit(model, r, x): (some[0, :-1], some, odd[0], None, 1.0),
        lambda x: null_space_direction(model, r, x, some): (odd, some[:0], some[:, :-1], None),
        lambda x: null_space_direction(model, r, some, x): (odd, some[:0], some[0], 2),
        lambda x: null_space_direction(model, r, some, some, nullity=x): (np.nan, "2", 0.0, 1.1),
        lambda x: null_space_direction(model, r, some, some, ridge=x): (*numbers, -1.0),
        lambda x: null_space_direction(model, r, some, some[:1], ridge=x): (0.0,),
        lambda x: null_space_direction(model, r, some, some, strength=x): numbers,
        added.gated: ([np.nan], 0.5, ["a"], [[1.0]], None, [np.inf]),
        added.gated([1.0, 0.0]).gated: ([1.0], [1.0] * 3),
        lambda x: condition_similarity(some, x): (0 * some[0], odd[0], some, some[0, :-1], 3),
        lambda x: condition_similarity(x, some[0]): (odd, some[0], None),
        lambda x: conditional_steering(added, x, 0.2): (similar * np.nan, some, None),
        lambda x: conditional_steering(added, similar, x): numbers,
        lambda x: conditional_steering(x, similar, 0.2): (None, r),
        lambda x: conditional_steering(added, similar, 0.2, steer_above=x): (None, 1, "no"),
        lambda x: ablate_direction(model, x): ("r", None, some[0]),
        lambda x: ablate_direction(model, r, positions=x): ([-1.0], [True], "first", {-1: 0}),
        lambda x: replace(added, gate=x): (torch.tensor([np.nan]), torch.tensor(1.0), some),
        lambda x: generate_steered(model, PROMPTS, max_new_tokens=2, rows=x): (0, 1.5, True),
        lambda x: run_steered(model, PROMPTS, x): (r, "add"),
        lambda x: vector_steering(model, some[0], scale=x): numbers,
        lambda x: AffineEdit(reads=some, writes=x): (odd,),
        lambda x: dose_response(lambda dose: {}, x): ([0.0, np.nan], [0, "1"], [0, None]),
    }
    accepted = []
    for number, (call, wrong) in enumerate(table.items()):
        for value in wrong:
            try:
                call(value)
                accepted.append((number, value))
            except InterpError:
                pass
    assert accepted == []
    with pytest.raises(InterpError):
        ablate_direction(model)
    for places in (np.int64(-1), [np.int64(-1), -3], torch.tensor([-2]), np.array([-1])):
        kept = ablate_direction(model, r, positions=places).positions
        assert kept == tuple(np.ravel(places).tolist())
        assert {type(place) for place in kept} == {int}


def test_random_direction_is_a_null(family_models):
    r = direction(family_models["llama"])
    drawn = random_direction(r, seed=5)
    assert drawn.norm == pytest.approx(r.norm)
    assert abs(float(drawn.unit @ r.unit)) < 0.6
    assert "random" in drawn.made


def test_losses_of_texts_feel_the_steering(family):
    """Against the model's own loss; steering changes it, a gate at 0 and a strength of 0 do not."""
    texts = PROMPTS[:4]
    plain = text_losses(family, texts)
    for row, loss in zip(texts, plain.tolist(), strict=True):
        logits = torch.stack([family.last_logits([row[:end]])[0] for end in range(1, len(row))])
        expected = torch.nn.functional.cross_entropy(logits.double(), torch.tensor(row[1:]))
        assert loss == pytest.approx(float(expected), abs=1e-4)
    # From a start on: the mean over those tokens alone.
    starts = [1, len(texts[1]) - 1, 2, 1]
    tails = text_losses(family, texts, starts=starts)
    for row, start, loss in zip(texts, starts, tails.tolist(), strict=True):
        each = [
            float(
                torch.nn.functional.cross_entropy(
                    family.last_logits([row[:end]])[0].double(), torch.tensor(row[end])
                )
            )
            for end in range(start, len(row))
        ]
        assert loss == pytest.approx(sum(each) / len(each), abs=1e-4)
    assert tails[0] == plain[0]
    assert abs(tails[1] - plain[1]) > 1e-4
    for bad in ([1, 1], [0, 1, 1, 1], [1, 1, 1, len(texts[3])]):
        with pytest.raises(InterpError, match="for each text|inside the prompt"):
            text_losses(family, texts, starts=bad)
    added = add_direction(family, direction(family, scale=9.0))
    with steer(family, added.gated([1, 0, 1, 1]), texts):
        moved = text_losses(family, texts)
    assert (moved - plain).abs()[[0, 2, 3]].min() > 1e-3
    assert moved[1] == pytest.approx(float(plain[1]), abs=1e-6)
    with pytest.raises(InterpError, match="one of one token"):
        text_losses(family, PROMPTS)
