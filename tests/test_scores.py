"""Scores: intervals and nulls that mean what they say, and files that cannot lie."""

import numpy as np
import pytest

from interp.components import SITES, Component
from interp.errors import InterpError
from interp.figures import DIVERGING, heat_map
from interp.graph import Graph
from interp.scores import Provenance, Scores

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


def test_bootstrap_covers_the_truth():
    """About 95 % of intervals hold the true value; not 80 %, not all."""
    hits = sum(
        low[3, 2] <= 0.5 <= high[3, 2]
        for low, high in (noisy(seed=seed).interval(draws=400) for seed in range(200))
    )
    assert 0.89 <= hits / 200 <= 0.99


def test_stderr_agrees_with_the_bootstrap():
    scores = noisy(n=200)
    low, high = scores.interval()
    np.testing.assert_allclose((high - low)[3, 2] / 2, 1.96 * scores.stderr[3, 2], rtol=0.15)


def test_null_finds_the_planted():
    found = noisy().null(1, band=11)
    assert found.p < 0.02
    assert found.selected > found.high
    assert found.mean == pytest.approx(0, abs=0.02)
    assert noisy().null(1).mean == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("k", [1, 5])
def test_null_is_uniform_on_noise(k):
    """Selecting the strongest of pure noise must not look like a finding."""
    p = []
    for seed in range(120):
        noise = np.random.default_rng(seed).standard_normal((40, 12, 8))
        p.append(make(noise).null(k, band=11, draws=400, seed=seed).p)
    assert 0.4 < np.mean(p) < 0.6
    assert np.mean(np.array(p) < 0.05) < 0.12


def test_null_refuses_what_it_cannot_judge():
    noise = np.random.default_rng(3).standard_normal((8, 2, 1))
    for scores, k, message in (
        (make(noise), 1, "widen band"),
        (make(noise), 2, "k between"),
        (make(noise), 0, "k between"),
        (make(noise[:3]), 1, "3 prompts"),
    ):
        with pytest.raises(InterpError, match=message):
            scores.null(k)


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
    with pytest.raises(InterpError, match="other axes"):
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
            with pytest.raises(InterpError, match="leave the number out"):
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
