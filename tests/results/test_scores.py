"""Scores: intervals and nulls that mean what they say, and files that cannot lie."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from experiments.calibration import (
    EFFECTS,
    coverage,
    ours,
    power,
    selections,
    share,
    student,
)
from interp.core.components import SITES, Component
from interp.core.errors import InterpError
from interp.core.nulls import null_of
from interp.core.records import Provenance
from interp.core.statistics import bootstrap_weights, ratio_estimate, share_estimate
from interp.engine.edges.graph import Graph
from interp.plots.heatmaps import heat_map
from interp.plots.style import DIVERGING
from interp.results.scores import Scores

FROM = Provenance(
    model="m",
    model_hash="h",
    dtype="float32",
    task="t",
    task_hash="k",
    seed=0,
    versions={},
    commit=None,
    call="",
)


def make(effects, *, clean=None, axes=("layer", "head"), positions="all tokens"):
    n = len(effects)
    clean = np.full(n, 2.0) if clean is None else clean
    return Scores(
        effects=np.asarray(effects, dtype=float),
        clean=clean,
        corrupted=np.zeros(n),
        axes=axes,
        coordinates={
            a: tuple(map(str, range(s))) for a, s in zip(axes, np.shape(effects)[1:], strict=True)
        },
        site="z",
        direction="denoise",
        method="test",
        metric="logit_diff",
        metric_unit="logits",
        positions=positions,
        provenance=FROM,
    )


def noisy(n=40, seed=0):
    """12 layers x 8 heads; L3H2 carries 0.5 of the gap, everything else noise."""
    rng = np.random.default_rng(seed)
    effects = 0.2 * rng.standard_normal((n, 12, 8))
    effects[:, 3, 2] += 1.0
    return make(effects, clean=2 + 0.5 * rng.standard_normal(n))


def test_ratio_of_means_by_hand():
    scores = make([[[1.0]], [[3.0]]], clean=np.array([1.0, 3.0]))
    assert scores.values[0, 0] == 1.0
    assert scores.stderr[0, 0] == 0.0  # the effect follows the gap exactly
    scores = make([[[0.0]], [[2.0]]])
    assert scores.values[0, 0] == 0.5
    assert scores.stderr[0, 0] == pytest.approx(np.std([0, 1], ddof=1) / np.sqrt(2))


@pytest.mark.parametrize("kind", EFFECTS[:2])
@pytest.mark.parametrize("n", [5, 16])
def test_intervals_cover_the_truth(kind, n):
    """About 95 % of intervals hold the true ratio; not 90 %, not all."""
    assert 0.92 <= coverage(ours, kind, n, 1000) <= 0.98


def test_skewed_effects_are_covered_better_than_by_students_t():
    found, plain = (coverage(interval, "exponential", 8, 1000) for interval in (ours, student))
    assert found >= 0.905
    assert found > plain


def test_interval_and_estimate_are_the_ratio_of_means():
    scores = noisy(n=7)
    low, high = scores.interval()
    one = ratio_estimate(scores.effects[:, 3, 2], scores.clean - scores.corrupted)
    assert scores.estimate("L3H2") == one
    assert (low[3, 2], high[3, 2]) == pytest.approx((one.low, one.high))
    assert (low < scores.values).all()
    assert (scores.values < high).all()
    assert str(noisy(n=4).estimate("L0H0")).endswith("n=4 (few)")


def test_shares_and_ratios_of_odd_counts_are_refused():
    for hits, n in ((5, 3), (-1, 3), (1.5, 3), (1, -3), (True, 3)):
        with pytest.raises(InterpError):
            share_estimate(hits, n)
    for part, whole in ((np.ones(3), np.ones(2)), (np.ones(3), np.ones((3, 1))), (1.0, 1.0)):
        with pytest.raises(InterpError, match="for each prompt"):
            ratio_estimate(part, whole)


def test_rows_of_one_text_count_once():
    """Every prompt four times is no new information."""
    scores = noisy(n=9)
    every = make(np.repeat(scores.effects, 4, 0), clean=np.repeat(scores.clean, 4))
    texts = np.repeat(np.arange(9), 4).tolist()
    np.testing.assert_allclose(every.interval(groups=texts), scores.interval())
    narrow = np.subtract(*every.interval()[::-1])
    assert (narrow < 0.6 * np.subtract(*scores.interval()[::-1])).all()
    once, again = (test.flips for test in (scores.null(2), every.null(2, groups=texts)))
    assert (again.p, again.signs, again.draws) == (once.p, 9, 512)
    with pytest.raises(InterpError, match="one label per row"):
        every.interval(groups=texts[:-1])
    for ask in (every.interval, every.null):
        with pytest.raises(InterpError, match="give texts or numbers as labels"):
            ask(groups=[[text] for text in texts])


def test_stderr_agrees_with_the_bootstrap():
    scores = noisy(n=200)
    weights = bootstrap_weights(200, 2000) / 200
    drawn = (weights @ scores.effects[:, 3, 2]) / (weights @ scores.clean)
    np.testing.assert_allclose(drawn.std(), scores.stderr[3, 2], rtol=0.1)


def test_null_finds_the_planted():
    found = noisy().null(1, band=11)
    assert found.flips.p == found.flips.least == 1 / 2000
    assert found.unseen.low > found.high
    assert found.mean == pytest.approx(0, abs=0.02)
    assert noisy().null(1).mean == pytest.approx(0, abs=0.05)
    assert "p = 0.0005 (2000 sign flips of 40 prompts, least possible 0.0005)" in str(found)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["equal", "unequal", "gaps vary", "correlated", "grouped"])
@pytest.mark.parametrize("k", [1, 5])
def test_null_is_uniform_on_noise(kind, k):
    """Selecting the strongest of pure noise must not look like a finding."""
    p, skewed = selections(kind, 8, k, 1000, draws=100)
    assert 0.47 < p.mean() < 0.54
    assert 0.03 <= share(p) <= 0.065
    assert skewed.mean() < 0.05


def test_null_says_where_p_assumes_what_does_not_hold():
    """Skewed noise is found more often than it should be; the words say so."""
    p, skewed = selections("skewed", 16, 5, 100, draws=100)
    assert share(p) > 0.065
    assert skewed.mean() > 0.9
    effects = np.random.default_rng(0).exponential(size=(16, 12, 8)) - 1
    assert "p assumes symmetric effects, but these are skewed" in str(make(effects).null(5))
    assert "skew" not in str(noisy().null(5))


def test_groups_of_prompts_are_counted_as_such():
    found = noisy(n=40).null(1, groups=np.repeat(np.arange(4), 10).tolist())
    assert (found.flips.signs, found.unseen.n) == (4, 2)
    assert "sign flips of 4 groups of prompts" in str(found)
    assert "one half of the groups of prompts, effect on the other" in str(found)
    assert "n=2 (few)" in str(found)


def test_null_tries_every_flip_of_few_prompts():
    """By hand: the best of two heads on every choice of signs of five prompts."""
    effects = np.random.default_rng(1).standard_normal((5, 2, 1)) + 0.5
    best = [
        (np.array(signs) @ effects[:, :, 0]).max() for signs in itertools.product([1, -1], repeat=5)
    ]
    found = make(effects).null(1).flips
    assert (found.draws, found.signs, found.least) == (32, 5, 1 / 32)
    assert found.p == np.mean(np.array(best) >= best[0])
    assert make(np.ones((4, 2, 1))).null(1).flips.p == 1 / 16


def test_null_needs_fewer_prompts_than_half_and_half():
    found = power(8, 50)
    assert found["all flipped, selected anew"] > 0.3 > found["selected on one half"]


def test_null_ranks_as_top_does():
    """By fractions of the gap, signed by it: a metric and its negative say the same."""
    scores = noisy(n=8)
    turned = replace(
        scores, effects=-scores.effects, clean=-scores.clean, corrupted=-scores.corrupted
    )
    assert turned.top(1)[0].label == scores.top(1)[0].label == "L3H2"
    assert turned.null(1) == scores.null(1)
    against = replace(scores, effects=-scores.effects)
    assert against.null(1).flips.p > 0.05
    found = against.null(1, by="absolute")
    assert found.flips.p == 2 / 256  # all signs turned is as strong by size
    assert found.unseen.mean == pytest.approx(0.5, abs=0.1)


def test_p_of_each_cell_is_that_of_the_strongest_of_every_flip():
    """By hand: all flips of six prompts; the strongest cell has the p of `null(1)`."""
    effects = np.random.default_rng(1).standard_normal((6, 3, 2)) + [[[0.8], [0], [0]]]
    flat = effects.reshape(6, 6)
    flips = [np.array(signs) @ flat / 6 for signs in itertools.product([1, -1], repeat=6)]
    for by, strength in (("value", np.asarray), ("absolute", np.abs)):
        best = np.array([strength(one).max() for one in flips])
        expected = [np.mean(best >= one) for one in strength(flips[0])]
        found = make(effects).p_values(by=by)
        np.testing.assert_allclose(found.ravel(), expected)
        assert found.min() == make(effects).null(1, by=by).flips.p
    scores = noisy(n=8)
    turned = replace(
        scores, effects=-scores.effects, clean=-scores.clean, corrupted=-scores.corrupted
    )
    np.testing.assert_array_equal(turned.p_values(), scores.p_values())
    assert np.argwhere(noisy().p_values() <= 0.05).tolist() == [[3, 2]]
    groups = np.repeat(np.arange(6), 2).tolist()
    twice = make(np.repeat(effects, 2, 0)).p_values(groups=groups)
    np.testing.assert_allclose(twice, make(effects).p_values())


def test_no_more_tables_of_noise_name_a_cell_than_the_level_says():
    rng = np.random.default_rng(0)
    tables = rng.standard_normal((1000, 8, 3, 4))
    named = np.mean([(make(table).p_values(draws=100) <= 0.05).any() for table in tables])
    assert 0.035 < named < 0.065


def test_null_refuses_what_it_cannot_judge():
    with pytest.raises(InterpError, match="3 independent prompts"):
        make(np.ones((3, 2, 1))).p_values()
    with pytest.raises(InterpError, match="does not change this ranking"):
        make(np.ones((4, 2, 1))).p_values(by="mean_absolute")
    noise = np.random.default_rng(3).standard_normal((8, 2, 1))
    for scores, options, message in (
        (make(noise), {"k": 3}, "k between"),
        (make(noise), {"k": 0}, "k between"),
        (make(noise[:3]), {"k": 1}, "3 independent prompts"),
        (make(noise), {"k": 1, "groups": list("aabbccaa")}, "3 independent prompts"),
        (make(noise), {"k": 1, "by": "mean_absolute"}, "does not change this ranking"),
        (make(noise), {"k": 1, "by": "size"}, "size"),
    ):
        with pytest.raises(InterpError, match=message):
            scores.null(**options)
    alone = make(noise[:, :, :1]).null(1)
    assert np.isnan(alone.mean)
    assert "random" not in str(alone)


def test_random_sets_have_a_rank_and_no_p():
    found = null_of(0.5, np.array([0.1, 0.5, 0.9, 0.2]))
    assert found.share == 3 / 5
    assert str(found).endswith("rank 3 of 5")
    assert not hasattr(found, "p")
    for selected, random in ((0.5, [0.1, np.nan]), (np.nan, [0.1, 0.2])):
        with pytest.raises(InterpError, match="not numbers"):
            null_of(selected, np.array(random))


def test_one_prompt_has_no_interval():
    scores = make([[[1.0]]])
    assert scores.estimate("L0H0").high == np.inf
    assert np.isnan(scores.stderr).all()
    assert len(scores.to_dataframe()) == 1
    scores.plot()


def test_top_labels_and_index():
    scores = noisy()
    best = scores.top(3)[0]
    assert (best.label, best.rank, best.of) == ("L3H2", 1, 96)
    assert scores.index("L3H2") == (3, 2)
    assert scores.estimate("L3H2").low < best.value < scores.estimate("L3H2").high
    assert scores.top(1, by="absolute")[0].label == "L3H2"
    for label in ("L3H9", "L40H1", "L3.mlp_out"):
        with pytest.raises(InterpError):
            scores.index(label)


def test_positions_axis():
    effects = np.zeros((2, 2, 3, 4))
    effects[:, 1, 2, 3] = -2.0
    scores = make(effects, axes=("layer", "head", "position"))
    assert scores.top(1, by="absolute")[0].label == "L1H2 @ 3"
    assert scores.grid()[0][1, 2] == -1.0
    assert scores.grid("0")[0][1, 2] == 0.0
    assert scores.index("L1H2", "3") == (1, 2, 3)


def test_agreement():
    scores = noisy()
    same = scores.agreement(scores)
    assert same["pearson"] == pytest.approx(1)
    assert same["spearman"] == pytest.approx(1)
    assert same["max_abs_diff"] == 0
    assert same["top_10_jaccard"] == 1
    assert (
        abs(
            scores.agreement(make(np.random.default_rng(9).standard_normal((40, 12, 8))))[
                "spearman"
            ]
        )
        < 0.3
    )
    with pytest.raises(InterpError, match="different axes"):
        scores.agreement(make(np.zeros((2, 3, 3))))


def test_dataframe():
    frame = noisy().to_dataframe()
    assert len(frame) == 96
    row = frame[frame.component == "L3H2"].iloc[0]
    assert row.low < row.value < row.high
    assert row.n == 40


def test_save_load_is_the_identity(tmp_path):
    scores = noisy()
    path = scores.save(tmp_path / "x")
    again = Scores.load(path)
    assert np.array_equal(again.effects, scores.effects)
    assert again.provenance == scores.provenance
    assert again.hash == scores.hash
    assert repr(again) == repr(scores)


def test_names_with_dots_stay_apart(tmp_path):
    noisy(seed=1).save(tmp_path / "lr0.1")
    noisy(seed=2).save(tmp_path / "lr0.2")
    assert Scores.load(tmp_path / "lr0.1").hash == noisy(seed=1).hash


def test_shapes_are_checked():
    with pytest.raises(InterpError, match=r"give \(n"):
        make(np.zeros((2, 3, 3)), clean=np.zeros(5))


def test_signed_map_is_centred_on_zero():
    figure = noisy().plot()
    cells, targets = figure.data
    assert cells.zmin == -cells.zmax
    assert cells.zmax == pytest.approx(np.abs(noisy().values).max())
    assert (
        figure.data[0].colorscale
        == heat_map(np.zeros((1, 1)), x=["0"], y=["0"], x_title="", y_title="", colour_title="")
        .data[0]
        .colorscale
    )
    assert DIVERGING == "RdBu_r"
    place = next(i for i, at in enumerate(targets.customdata) if list(at) == [3, 2])
    assert targets.hovertext[place].startswith("<b>L3H2</b>  0.")
    assert "±" in targets.hovertext[place]


@pytest.mark.parametrize("site", SITES)
def test_component_labels_round_trip(site):
    for index in (None, 0, 17):
        if index is not None and SITES[site] is None:
            with pytest.raises(InterpError, match="omit the number"):
                Component(3, site, index)
            continue
        part = Component(31, site, index)
        assert Component.parse(str(part)) == part


@pytest.mark.parametrize(
    "label",
    ["", "H3", "L1", "L1H", "L1H2.mlp_out", "L1N3.z", "L1H2.zz", "l1h2", "L1KV2", "L1KV2.q"]
    + ["L١H٢", "L1H²", f"L{'9' * 5000}H0"],
)
def test_bad_labels(label):
    with pytest.raises(InterpError):
        Component.parse(label)


@pytest.mark.parametrize("site", ["k", "v"])
def test_key_value_heads_have_labels_of_their_own(site):
    assert str(Component(3, site, 1)) == f"L3KV1.{site}"
    with pytest.raises(InterpError, match=f"write L3KV1.{site} for one of its key/value heads"):
        Component.parse(f"L3H1.{site}")
    graph = Graph(n_layers=4, n_heads=4, n_kv_heads=2)
    assert not set(graph.readers) & {f"L3H1.{site}", f"L3H3.{site}"}
    assert f"L3H3.{site}" in graph.expanded.readers  # as head 3 reads it
    with pytest.raises(InterpError, match=f"did you mean 'L3KV1.{site}'"):
        graph.edge(f"input->L3H1.{site}")


def test_scores_that_say_nothing_are_refused():
    """No prompts and numbers that are not finite at once; a gap of zero where it divides."""
    noise = np.random.default_rng(3).standard_normal((8, 2, 1))
    for effects in (noise[:0], noise * np.nan, noise * np.inf):
        with pytest.raises(InterpError, match="give at least one prompt, and finite numbers"):
            make(effects)
    flat = replace(make(noise), clean=np.ones(8), corrupted=np.ones(8))
    for call in (
        lambda: flat.values,
        lambda: flat.stderr,
        flat.interval,
        flat.top,
        lambda: flat.top(by="mean_absolute"),
        lambda: flat.estimate("L0H0"),
        lambda: flat.null(1),
        flat.plot,
        flat.to_dataframe,
        flat.to_dict,
        lambda: flat.agreement(flat),
    ):
        with pytest.raises(InterpError, match="same mean metric"):
            call()
    assert flat.gap == 0
    assert "Scores(" in repr(flat)


def test_the_least_p_is_one_that_occurs():
    """By absolute value the flip of all signs ties with the data."""
    strong = np.full((6, 2, 1), 5.0) + np.random.default_rng(0).standard_normal((6, 2, 1))
    for by, least in (("value", 1 / 64), ("absolute", 2 / 64)):
        flips = make(strong).null(1, by=by).flips
        assert flips.least == flips.p == least
