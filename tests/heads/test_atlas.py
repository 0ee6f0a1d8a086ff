"""The head atlas: scores against loops, known heads named, and none named in random models."""

import math

import numpy as np
import pytest
import torch

from interp.core.errors import InterpError
from interp.core.statistics import ratio_of_means
from interp.heads.atlas import FAMILYWISE, head_atlas, repeated_tokens
from interp.heads.attention_keys import ENTROPY, ROLES, control_keys, wanted_keys
from interp.heads.attention_scores import attention_scores
from interp.models.compiled import load_compiled
from interp.models.loading import load_model, wrap
from interp.runs.capture import run_with_cache
from tests.families import tiny

PROMPTS = [
    (5, 6, 7, 8, 5, 6, 7, 8),
    (11, 12, 11, 12, 12, 13),
    (21, 22, 23, 24, 25, 26, 27, 28, 29, 21),
    (31, 32, 33, 34),
]


def is_key(tokens, query, key, measure):
    """The definition of a measure for one query and key."""
    if measure == "to previous token":
        return key == query - 1
    if measure == "to first token":
        return key == 0 < query
    if measure == "to current token":
        return 0 < key == query
    if measure == "to same token":
        return key < query and tokens[key] == tokens[query]
    return 0 < key <= query and tokens[key - 1] == tokens[query]


def others(tokens, query, key, measure):
    """The keys among which another one is drawn for a key."""
    free = [j for j in range(query + 1) if not is_key(tokens, query, j, measure)]
    later = [j for j in free if j > 0]
    near = [j for j in later if 0.5 <= (query - j + 1) / (query - key + 1) <= 2]
    return near or later or free


def slowly(pattern, tokens, measure):
    """(score, control, chance) of one pattern (query, key), one query and key at a time."""
    n = len(tokens)
    if measure == ENTROPY:
        rows = [[p for p in row if p > 0] for row in pattern.tolist()]
        values = [-sum(p * math.log(p) for p in row) for row in rows]
        return np.mean(values), np.nan, np.mean([math.log(len(row)) for row in rows])
    scores, controls, chances = [], [], []
    for query in range(n):
        keys = [j for j in range(query + 1) if is_key(tokens, query, j, measure)]
        if keys:
            row = pattern[query].tolist()
            drawn = [others(tokens, query, key, measure) for key in keys]
            seen = [j for j in range(query + 1) if row[j] > 0]
            scores.append(sum(row[key] for key in keys))
            controls.append(sum(np.mean([row[j] for j in some]) for some in drawn))
            chances.append(len(set(keys) & set(seen)) / len(seen))
    return [np.mean(some) if some else np.nan for some in (scores, controls, chances)]


def test_every_family_against_loops(family):
    found = attention_scores(family, PROMPTS)
    assert {*found} == {*ROLES, ENTROPY}
    for measure, seen in found.items():
        expected = np.full((3, len(PROMPTS), family.n_layers, family.n_heads), np.nan)
        for i, tokens in enumerate(PROMPTS):
            patterns = run_with_cache(family, [tokens], sites=["pattern"])
            for layer, head in np.ndindex(family.n_layers, family.n_heads):
                pattern = patterns[layer, "pattern"][0, :, head].double()
                expected[:, i, layer, head] = slowly(pattern, tokens, measure)
        score, control, chance = expected[:, seen.kept]
        np.testing.assert_allclose(seen.samples, score, atol=2e-6)
        np.testing.assert_allclose(seen.control, control, atol=2e-6)
        np.testing.assert_allclose(seen.uniform, chance[..., 0], atol=1e-12)
        assert seen.n + seen.dropped == len(PROMPTS)
    assert found["to same token"].kept.tolist() == [0, 1, 2]


def test_the_budget_changes_nothing(family_models):
    model = family_models["llama"]
    whole = attention_scores(model, PROMPTS)
    apart = attention_scores(model, PROMPTS, budget_gb=1e-9)
    for measure, seen in whole.items():
        np.testing.assert_allclose(apart[measure].samples, seen.samples, atol=1e-6)


def test_a_control_is_never_a_key_and_has_as_many():
    for tokens in (*PROMPTS, (4, 4, 4, 4, 4), (4, 5)):
        for measure in ROLES:
            wanted = wanted_keys(tokens, measure)
            control = control_keys(wanted)
            assert not control[wanted].any()
            assert not np.triu(control, 1).any()
            np.testing.assert_allclose(control.sum(1), wanted.sum(1))


# -- known heads -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy_atlas():
    model = load_model("toy-induction")
    return head_atlas(model, ["<bos> a b c d a b c d", "<bos> h g f h g f e"])


def test_the_heads_of_the_induction_toy_are_named(toy_atlas):
    named = toy_atlas.named()
    assert named["previous token"] == ["L0H1"]
    assert named["induction"] == ["L1H2"]
    assert named["duplicate token"] == []
    seen = toy_atlas.scores["repeated"]["to token after same token"]
    assert seen.values[1, 2] > 0.9
    assert seen.excess[1, 2] > 0.85
    assert "previous token L0H1; induction L1H2; duplicate token none" in repr(toy_atlas)


def test_a_compiled_histogram_is_a_duplicate_token_head():
    """The one head of `hist` attends equally to <bos> and all copies of the query's token."""
    compiled = load_compiled("hist")
    cases = [case for case in compiled.cases if len(case) > 4]
    seen = attention_scores(compiled.model, cases)
    again = seen["to same token"]
    assert again.values[0, 0] == pytest.approx(expected_of(cases), abs=1e-3)
    assert again.excess_interval(level=1 - FAMILYWISE / 5)[0][0, 0] > 0.1
    assert seen["to previous token"].excess[0, 0] < 0.1


def expected_of(cases):
    """The mean share of m copies before the query, beside the query and <bos>: m / (m + 2)."""
    means = []
    for case in cases:
        copies = [case[:q].count(case[q]) for q in range(len(case))]
        shares = [m / (m + 2) for m in copies if m]
        if shares:
            means.append(np.mean(shares))
    return np.mean(means)


@pytest.mark.parametrize(
    ("name", "scale"), [("llama", 1), ("llama", 20), ("gpt2", 1), ("gemma3", 1)]
)
def test_no_head_of_a_random_model_is_named(name, scale):
    raw = tiny(name)
    with torch.no_grad():
        for part, weight in raw.named_parameters():
            if weight.dim() > 1 and "embed" not in part and "wte" not in part:
                weight *= scale
    model = wrap(raw, name=f"random-{name}-{scale}")
    atlas = head_atlas(model, repeated_tokens(model, 30, 12, seed=5), length=20)
    for on in ("repeated", "text"):
        assert not any(atlas.named(on).values())
    assert "induction none" in repr(atlas)


def test_naming_is_corrected_for_all_heads(toy_atlas):
    """At 95 % for one head, some of many heads without a role would be named by chance."""
    seen = toy_atlas.scores["repeated"]["to token after same token"]
    paired = seen.samples - seen.control
    low, _ = seen.excess_interval(level=1 - FAMILYWISE / 40)
    expected = ratio_of_means(paired, level=1 - 0.05 / (8 * 5)).low
    np.testing.assert_allclose(low, expected)
    assert (low < seen.excess_interval()[0]).all()


# -- the result ------------------------------------------------------------------------------


def test_the_table_has_a_row_for_every_head(toy_atlas):
    table = toy_atlas.to_dataframe().set_index("component")
    assert len(table) == 8
    assert table.loc["L1H2", "roles"] == "induction"
    assert table.loc["L0H1", "to previous token (repeated)"] > 0.95
    assert {"entropy (text)", "copying"} <= {*table.columns}
    strongest = toy_atlas.strongest(1)
    first = strongest[(strongest["role"] == "induction") & (strongest["prompts"] == "repeated")]
    assert first["component"].tolist() == ["L1H2"]
    assert first["named"].all()
    assert first["n"].tolist() == [24]
    assert "L1H2" in toy_atlas._repr_html_()


def test_plots(toy_atlas):
    figure = toy_atlas.plot()
    assert (
        figure.data[0].z[1][2]
        == toy_atlas.scores["repeated"]["to token after same token"].values[1, 2]
    )
    assert toy_atlas.plot("copying").data[0].z.shape == (2, 4)
    for wrong in ({"measure": "to moon"}, {"on": "music"}):
        with pytest.raises(InterpError, match="no such name"):
            toy_atlas.plot(**wrong)


def test_repeated_tokens():
    model = load_model("toy-induction")
    prompts = repeated_tokens(model, 40, 6, seed=1)
    assert prompts == repeated_tokens(model, 40, 6, seed=1)
    assert prompts != repeated_tokens(model, 40, 6, seed=2)
    special = {*model.tokenizer.all_special_ids}
    for prompt in prompts:
        half = len(prompt) // 2
        assert prompt[:half] == prompt[half:]
        assert len(set(prompt[:half])) == half
        assert not special & {*prompt}
    assert {len(prompt) // 2 for prompt in prompts} == {3, 4, 5, 6}


def test_what_cannot_be_measured_is_said(family_models):
    model = family_models["llama"]
    with pytest.raises(InterpError, match="no prompts"):
        head_atlas(model, [])
    with pytest.raises(InterpError, match="no tokeniser"):
        head_atlas(model)
    for wrong in ({"n": 0}, {"length": 0}, {"least": -1}, {"budget_gb": 0}):
        with pytest.raises(InterpError):
            head_atlas(model, PROMPTS, **wrong)
