"""Lenses in public files, in compact files, and the lens that ships."""

from dataclasses import replace

import pytest
import torch

from interp.core.errors import InterpError
from interp.probing import lens_files
from interp.probing.lens_files import (
    CompactLens,
    load_public_lens,
    save_public_lens,
    shipped_lens,
)
from interp.probing.lens_maps import LensMaps
from tests.words import word_model


@pytest.fixture(scope="module")
def words():
    return word_model()


@pytest.fixture(scope="module")
def maps(words):
    drawn = torch.Generator().manual_seed(1)
    halves = torch.eye(32) + 0.1 * torch.randn(2, 2, 32, 32, generator=drawn)
    return LensMaps(
        kind="jacobian",
        model=words.name,
        model_hash=words.hash,
        layers=(0, 1),
        matrices=(3 * halves[0] + 2 * halves[1]) / 5,
        halves=halves,
        n=(3, 2),
        corpus="words",
        options={"skip": 3},
    )


def test_a_public_file_is_read_by_transformerlens_and_back(words, maps, tmp_path):
    from transformer_lens.tools.analysis import JacobianLens

    path = save_public_lens(tmp_path / "x_jacobian_lens.pt", maps)
    theirs = JacobianLens.load(str(path))
    assert (theirs.source_layers, theirs.n_prompts, theirs.d_model) == ([0, 1], 5, 32)
    back = load_public_lens(path, words)
    for place in (0, 1):
        assert torch.equal(theirs.jacobians[place], back.matrices[place])
    torch.testing.assert_close(back.matrices, maps.matrices, atol=1e-3, rtol=1e-3)
    assert (back.layers, back.n, back.corpus) == ((0, 1), (5, 0), "words")
    assert back.halves is None


def test_a_checkpoint_of_the_reference_fit_is_read(words, maps, tmp_path):
    sums = {layer: 4 * m for layer, m in zip((0, 1), maps.matrices, strict=True)}
    made = {"jacobian_sum": sums, "n_done": 4, "next_idx": 4, "source_layers": [0, 1]}
    torch.save({**made, "target_layer": 2, "skip_first": 16}, tmp_path / "fit.pt")
    back = load_public_lens(tmp_path / "fit.pt", words)
    torch.testing.assert_close(back.matrices, maps.matrices)
    assert back.n == (4, 0)
    torch.save({**made, "target_layer": 1, "skip_first": 16}, tmp_path / "other.pt")
    with pytest.raises(InterpError, match="maps to layer 1"):
        load_public_lens(tmp_path / "other.pt", words)


def test_public_files_of_other_models_are_refused(words, maps, tmp_path):
    wide = replace(maps, matrices=torch.randn(2, 16, 16), halves=None)
    path = save_public_lens(tmp_path / "wide.pt", wide)
    with pytest.raises(InterpError, match="width 16"):
        load_public_lens(path, words)
    path = save_public_lens(tmp_path / "named.pt", replace(maps, model="owner/another"))
    with pytest.raises(InterpError, match="fitted on owner/another"):
        load_public_lens(path, words)
    path = save_public_lens(tmp_path / "deep.pt", replace(maps, layers=(1, 2)))
    with pytest.raises(InterpError, match="layers 1 to 2"):
        load_public_lens(path, words)
    with pytest.raises(InterpError, match="no such file"):
        load_public_lens(tmp_path / "none.pt", words)
    (tmp_path / "bad.pt").write_bytes(b"no lens")
    with pytest.raises(InterpError, match="the Jacobian lens"):
        load_public_lens(tmp_path / "bad.pt", words)
    with pytest.raises(InterpError, match="no Jacobian lens"):
        save_public_lens(tmp_path / "x.pt", replace(maps, kind="tuned"))


def test_two_bytes_a_number_keep_the_mean_and_the_halves(maps, tmp_path):
    """The error is far below the disagreement of the halves, which is the error of the fit."""
    path = CompactLens.of(maps).save(tmp_path / "lens")
    back = CompactLens.load(path).maps
    apart = float((maps.halves[0] - maps.halves[1]).norm())
    assert float((back.matrices - maps.matrices).norm()) < 0.02 * apart
    for i in (0, 1):
        error = back.half(i).matrices - maps.half(i).matrices
        assert float(error.norm()) < 0.02 * apart
    torch.testing.assert_close((3 * back.halves[0] + 2 * back.halves[1]) / 5, back.matrices)
    assert (back.n, back.layers, back.options) == (maps.n, maps.layers, maps.options)
    assert path.stat().st_size < 2 * maps.matrices.numel() + 10_000
    with pytest.raises(InterpError, match="mean alone"):
        CompactLens.of(maps.half(0))


def test_a_lens_is_found_by_the_hash_of_the_model(words, maps, tmp_path, monkeypatch):
    monkeypatch.setattr(lens_files, "SHIPPED", tmp_path)
    with pytest.raises(InterpError, match="ships for no model"):
        shipped_lens(words)
    other = replace(maps, model_hash="0" * 64, model="another")
    CompactLens.of(other).save(tmp_path / "a" / "lens")
    with pytest.raises(InterpError, match="ships for another"):
        shipped_lens(words)
    CompactLens.of(maps).save(tmp_path / "b" / "lens")
    assert shipped_lens(words).model == words.name
