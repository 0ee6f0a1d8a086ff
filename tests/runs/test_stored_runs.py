import numpy as np
import pytest
import torch

from interp.core.errors import InterpError
from interp.heads.attention import attention_to
from interp.neurons.from_heads import head_glu_scores
from interp.neurons.glu import glu_activations
from interp.probing.lens import logit_lens
from interp.runs.capture import run_with_cache
from interp.runs.changed_runs import ChangedRuns
from interp.runs.hooks import intervene
from interp.runs.kinds import make_ablation, zero
from interp.runs.next_tokens import ablate
from interp.runs.stored_runs import keep_runs, site_values

PROMPTS = [tuple(range(5 + i, 5 + i + n)) for i, n in enumerate((9, 6, 9, 7))]
AT = [len(prompt) - 2 + i % 2 for i, prompt in enumerate(PROMPTS)]
SETS = (("L0H1", "L0H3"), ("L1N4", "L1N20", "L2H0"))


def test_what_is_read_in_kept_runs_is_what_a_run_holds(family):
    sites = [site for site, reason in family.sites.items() if reason is None]
    runs = keep_runs(family, PROMPTS, last=2)
    kept = run_with_cache(family, PROMPTS, sites=sites, positions=AT, runs=runs)
    seen = run_with_cache(family, PROMPTS, sites=sites, positions=AT)
    assert kept.values.keys() == seen.values.keys()
    for address, value in seen.values.items():
        torch.testing.assert_close(kept[address], value, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(kept.logits, seen.logits, atol=2e-5, rtol=1e-4)


def test_site_values_attention_and_lens_from_kept_runs(family):
    runs = keep_runs(family, PROMPTS, last=2)
    addresses = [(0, "z"), (2, "resid_post")]
    for last in (1, 2):
        slow = site_values(family, PROMPTS, addresses, last=last)
        for address, value in site_values(family, PROMPTS, addresses, last=last, runs=runs).items():
            torch.testing.assert_close(value, slow[address], atol=2e-5, rtol=1e-4)
    keys = [[1, 3], [], [2], [1]]
    slow, fast = (
        attention_to(family, PROMPTS, AT, keys, drop_empty=True, runs=each) for each in (None, runs)
    )
    np.testing.assert_allclose(fast.samples, slow.samples, atol=1e-6)
    np.testing.assert_allclose(fast.control, slow.control, atol=1e-6)
    slow, fast = (logit_lens(family, PROMPTS, AT, words=[3], runs=each) for each in (None, runs))
    torch.testing.assert_close(fast.word_probability, slow.word_probability, atol=1e-5, rtol=1e-4)


def test_glu_and_communication_from_kept_runs(family_models):
    model = family_models["llama"]
    runs, neurons = keep_runs(model, PROMPTS, last=2), ["L1N4", "L2N20"]
    slow, fast = (glu_activations(model, PROMPTS, AT, neurons, runs=each) for each in (None, runs))
    torch.testing.assert_close(fast.product, slow.product, atol=1e-6, rtol=1e-4)
    options = {"mode": "activation", "prompts": PROMPTS, "positions": AT}
    slow, fast = (
        head_glu_scores(model, ["L0H1", "L1H2"], neurons, **options, runs=each)
        for each in (None, runs)
    )
    np.testing.assert_allclose(fast.values, slow.values, atol=1e-6)


def test_fewer_tokens_are_read_than_are_kept(family_models):
    runs, at = keep_runs(family_models["llama"], PROMPTS, last=3), (1, "resid_mid")
    whole = runs.read([at])[at]
    for last in (1, 2, 3):
        torch.testing.assert_close(runs.read([at], last)[at], whole[:, -last:])


@pytest.mark.parametrize("whole", [True, False])
def test_edited_prompts_are_run_from_their_first_edit_on(family, whole):
    edited = [list(prompt) for prompt in PROMPTS]
    edited[0][0], edited[1][-1] = 60, 61  # everything again, and the last token alone
    edited[2][4], edited[2][7] = 62, 63
    runs = keep_runs(family, PROMPTS, last=2, whole=whole)
    slow = torch.cat([family.last_logits([prompt]) for prompt in edited])
    torch.testing.assert_close(runs.edited_logits(edited), slow, atol=2e-5, rtol=1e-4)
    chosen = [2, 0, 3]  # the last is not edited
    some = runs.select(chosen).edited_logits([edited[i] for i in chosen])
    torch.testing.assert_close(some, slow[chosen], atol=2e-5, rtol=1e-4)
    plain = torch.cat([family.last_logits([prompt]) for prompt in PROMPTS])
    assert (slow - plain)[:3].abs().amax(1).min() > 1e-3


def test_edited_prompts_of_another_length_are_refused(family_models):
    runs = keep_runs(family_models["llama"], PROMPTS, last=1)
    for edited in (PROMPTS[:-1], [*PROMPTS[:-1], PROMPTS[0]]):
        with pytest.raises(InterpError, match="as many prompts, each as long"):
            runs.edited_logits(edited)


def test_what_kept_runs_cannot_show_is_refused(family_models):
    model = family_models["llama"]
    runs = keep_runs(model, PROMPTS, last=2)
    for options in ({"positions": "all"}, {"positions": AT, "to_disk": True}):
        with pytest.raises(InterpError, match="one position of each prompt"):
            run_with_cache(model, PROMPTS, sites=["z"], runs=runs, **options)
    early = [0] * len(PROMPTS)
    with pytest.raises(InterpError, match="last 9 tokens"):
        run_with_cache(model, PROMPTS, sites=["z"], positions=early, runs=runs)
    with pytest.raises(InterpError, match="last 2 tokens"):
        attention_to(model, PROMPTS, AT, [[1]] * 4, runs=keep_runs(model, PROMPTS, last=1))
    with pytest.raises(InterpError, match="shorter prompt"):
        keep_runs(model, PROMPTS, last=7)
    with intervene(model, [zero("L0H1")]):
        for call in (
            lambda: keep_runs(model, PROMPTS, last=2),
            lambda: run_with_cache(model, PROMPTS, sites=["z"], positions=AT, runs=runs),
            lambda: attention_to(model, PROMPTS, AT, [[1]] * 4, runs=runs),
        ):
            with pytest.raises(InterpError, match="inside intervene"):
                call()


def test_kept_runs_give_the_same_and_hold_less(family):
    made = [make_ablation(family, labels) for labels in SETS]
    runs = keep_runs(family, PROMPTS, last=2)
    for where in (1, 2):
        plain = ablate(family, PROMPTS, made, tokens=[3, 50], where=where)
        kept = ablate(family, PROMPTS, made, tokens=[3, 50], where=where, runs=runs)
        np.testing.assert_array_equal(kept.probabilities, plain.probabilities)
        np.testing.assert_array_equal(kept.kl, plain.kl)
    for _, run in runs.blocks:
        streams = [value for (_, site), value in run.sites.items() if site == "resid_pre"]
        assert all(len(stream) == 2 * len(run.lengths) for stream in streams)
    assert keep_runs(family, PROMPTS, last=2, budget_gb=1e-6) is None


def test_some_of_the_kept_runs_are_those_of_the_prompts(family):
    runs = keep_runs(family, PROMPTS, last=2)
    for chosen in ([3, 0], [2], [1, 3, 2]):
        prompts, some = [PROMPTS[i] for i in chosen], runs.select(chosen)
        slow = site_values(family, prompts, [(1, "z")], last=2)[1, "z"]
        fast = site_values(family, prompts, [(1, "z")], last=2, runs=some)[1, "z"]
        torch.testing.assert_close(fast, slow, atol=2e-5, rtol=1e-4)
        zeroed = [make_ablation(family, labels) for labels in SETS]
        slow = ablate(family, prompts, zeroed, tokens=[3, 50], where=2)
        fast = ablate(family, prompts, zeroed, tokens=[3, 50], where=2, runs=some)
        np.testing.assert_allclose(fast.probabilities, slow.probabilities, atol=1e-6)
        np.testing.assert_array_equal(fast.top, slow.top)


@pytest.mark.parametrize("where", [1, 2, "all"])
def test_ablated_runs_hold_what_a_changed_run_holds(family, where):
    sites = [site for site, reason in family.sites.items() if reason is None and site != "pattern"]
    lengths = [len(prompt) for prompt in PROMPTS]
    for labels in SETS:
        made = make_ablation(family, labels)
        runs = keep_runs(family, PROMPTS, last=2, whole=where == "all")
        ablated = ChangedRuns(runs=runs, change=made, where=where)
        last = [length - 1 for length in lengths]
        fast = run_with_cache(family, PROMPTS, sites=sites, positions=last, runs=ablated)
        with intervene(family, made.last(where)):
            slow = run_with_cache(family, PROMPTS, sites=sites, positions=last)
        for address, value in slow.values.items():
            torch.testing.assert_close(fast[address], value, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(fast.logits, slow.logits, atol=2e-5, rtol=1e-4)
        plain = run_with_cache(family, PROMPTS, sites=sites, positions=last, runs=runs)
        assert (plain.logits - slow.logits).abs().max() > 1e-3


def test_ablated_runs_of_too_few_tokens_are_refused(family_models):
    model = family_models["llama"]
    runs, made = keep_runs(model, PROMPTS, last=2), make_ablation(model, ["L0H1"])
    for where in (3, "all"):
        with pytest.raises(InterpError, match="kept runs"):
            ChangedRuns(runs=runs, change=made, where=where)
    ablated = ChangedRuns(runs=runs, change=made, where=1)
    with pytest.raises(InterpError, match="read the last"):
        run_with_cache(model, PROMPTS, sites=["z"], positions=AT, runs=ablated)
    with pytest.raises(InterpError, match="patterns"):
        ablated.read([(0, "pattern")])


def test_kept_runs_of_others_are_refused(family_models):
    model = family_models["llama"]
    runs = keep_runs(model, PROMPTS, last=1)
    zeroed = [make_ablation(model, ["L0H1"])]
    for prompts, where in ((PROMPTS[:2], 1), (PROMPTS, 2), (PROMPTS, "all")):
        with pytest.raises(InterpError, match="kept runs"):
            ablate(model, prompts, zeroed, tokens=[3], where=where, runs=runs)
