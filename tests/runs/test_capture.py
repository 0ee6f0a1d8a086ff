"""Captured activations: the right values, within the budget, on disk, whole or not at all."""

import multiprocessing
import subprocess
import sys

import pytest
import torch

from interp.core.components import EXPERT_SITES, SITES
from interp.core.errors import InterpError
from interp.core.files import cache_dir, write_atomically
from interp.runs.capture import run_with_cache

PROMPTS = [(5, 6, 7, 8, 9), (11, 12, 13)]


def test_equals_transformer_lens(family):
    sites = [site for site, reason in family.sites.items() if reason is None]
    seen = run_with_cache(family, PROMPTS, sites=sites)
    inside = {"q", "k", "v", "z", "pattern"}
    mlp = {"pre", "pre_linear", "post"}
    for i, prompt in enumerate(PROMPTS):
        _, cache = family.bridge.run_with_cache(torch.tensor([prompt]))
        for site in sites:
            part = "attn." if site in inside else "mlp." if site in mlp else ""
            expected = cache[f"blocks.1.{part}hook_{site}"][0].detach()
            if site == "pattern":
                expected = expected.transpose(0, 1)
                found = seen[1, site][i, : len(prompt), :, : len(prompt)]
            else:
                found = seen[1, site][i, : len(prompt)]
            torch.testing.assert_close(found.reshape(expected.shape), expected, atol=2e-5, rtol=0)


def test_resid_mid_is_the_sum(family):
    if family.sites["resid_mid"]:
        pytest.skip("parallel")
    seen = run_with_cache(family, PROMPTS, sites=["resid_pre", "attn_out", "resid_mid"])
    torch.testing.assert_close(
        seen["L2.resid_mid"], seen["L2.resid_pre"] + seen["L2.attn_out"], atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("site", SITES)
def test_padding_side_and_positions(family_models, site):
    model = family_models["qwen3-moe" if site in EXPERT_SITES else "qwen3"]
    everywhere = run_with_cache(model, PROMPTS, sites=[site], layers=[1])[1, site]
    for side in ("left", "right"):
        for where in ("last", [-1, 2]):
            seen = run_with_cache(
                model, PROMPTS, sites=[site], layers=[1], positions=where, padding_side=side
            )
            for i, prompt in enumerate(PROMPTS):
                torch.testing.assert_close(
                    seen[1, site][i], everywhere[i, len(prompt) - 1], atol=2e-5, rtol=0
                )
    mask = run_with_cache(model, PROMPTS, sites=[site], layers=[1]).mask
    assert mask.tolist() == [[True] * 5, [True] * 3 + [False] * 2]


def test_disk_round_trip_and_damage(family_models, monkeypatch):
    model = family_models["llama"]
    first = run_with_cache(model, PROMPTS, sites=["z"], to_disk=True)
    assert first.path is not None
    monkeypatch.setattr(type(model), "last_logits", lambda *a, **k: pytest.fail("ran again"))
    again = run_with_cache(model, PROMPTS, sites=["z"], to_disk=True)["L1.z"].clone()
    assert torch.equal(again, first["L1.z"])
    monkeypatch.undo()
    monkeypatch.setenv("INTERP_CACHE", str(first.path.parent.parent))
    first.path.write_bytes(first.path.read_bytes()[:100])
    assert torch.equal(run_with_cache(model, PROMPTS, sites=["z"], to_disk=True)["L1.z"], again)


def test_refusals(family_models):
    model = family_models["neox"]
    with pytest.raises(InterpError, match="over the budget"):
        run_with_cache(model, PROMPTS, sites=["z"], budget_gb=1e-6)
    with pytest.raises(InterpError, match="parallel"):
        run_with_cache(model, PROMPTS, sites=["resid_mid"])
    with pytest.raises(InterpError, match="inside the prompt"):
        run_with_cache(model, PROMPTS, sites=["z"], positions=[0, 3])
    with pytest.raises(InterpError, match=r"z of the layers \[0, 1, 2\].*acts\['L2\.z'\]"):
        run_with_cache(model, PROMPTS, sites=["z"])["L7.z"]
    with pytest.raises(InterpError, match="left"):
        run_with_cache(model, PROMPTS, sites=["z"], padding_side="top")
    for layers, message in (
        ([5], "layers 0 to 2"),
        ([], "layers 0 to 2"),
        ([0.5], "whole numbers"),
    ):
        with pytest.raises(InterpError, match=message):
            run_with_cache(model, PROMPTS, sites=["z"], layers=layers)
    with pytest.raises(InterpError, match="no prompts"):
        run_with_cache(model, [], sites=["z"])


@pytest.mark.parametrize("positions", ["all", "last"])
def test_keys_of_other_forms(family_models, positions):
    model = family_models["llama"]
    sites = ["resid_post", "z", "pattern", "post"]
    acts = run_with_cache(model, PROMPTS, sites=sites, positions=positions)
    first = 1 if positions == "last" else 2
    for site, name in (
        ("resid_post", "hook_resid_post"),
        ("z", "attn.hook_z"),
        ("pattern", "attn.hook_pattern"),
        ("post", "mlp.hook_post"),
    ):
        assert acts[site, 1] is acts[1, site] is acts[f"L1.{site}"] is acts[f"blocks.1.{name}"]
    assert torch.equal(acts["L2H1.pattern"], acts[2, "pattern"].select(first, 1))
    assert torch.equal(acts["L2H3"], acts[2, "z"].select(first, 3))
    assert torch.equal(acts["L0N7"], acts[0, "post"].select(first, 7))
    assert list(acts)[:2] == ["L0.resid_post", "L0.z"]
    assert len(acts) == len(list(acts)) == 4 * model.n_layers
    assert all(key in acts for key in acts)
    assert "blocks.1.attn.hook_z" in acts
    assert torch.equal(acts["z", -1], acts["L2.z"])
    for key in ("L1.q", ("q", 1), "blocks.1.hook_z", "blocks.7.attn.hook_z", "L1H9", "z", 3, None):
        assert key not in acts
        with pytest.raises(InterpError, match=r"write a layer and a site|heads 0 to 3"):
            acts[key]


def test_sites_left_out_or_misspelt_are_named(family_models):
    with pytest.raises(InterpError, match="no sites; give some of resid_pre, q, "):
        run_with_cache(family_models["llama"], PROMPTS, sites=[])
    with pytest.raises(TypeError, match=r"'site' \(did you mean 'sites'\?\); it takes model, "):
        run_with_cache(family_models["llama"], site="z")


def test_one_token_keeps_its_shape_on_disk(family_models):
    model = family_models["llama"]
    for positions, shape in (("all", (1, 1, 4, 8)), ("last", (1, 4, 8))):
        seen = run_with_cache(model, [(5,)], sites=["z"], positions=positions, to_disk=True)
        assert seen["L0.z"].shape == shape


def test_full_disk_is_one_message(tmp_path):
    """A limit on file size stands in for a full disk; safetensors raises an error of its own."""
    script = (
        "import resource, sys, torch\n"
        "from safetensors.torch import save_file\n"
        "from interp.core.files import write_atomically\n"
        "from interp.core.errors import InterpError\n"
        "from pathlib import Path\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "big = {'x': torch.zeros(10_000)}\n"
        "try:\n"
        "    write_atomically(Path(sys.argv[1]), lambda partial: save_file(big, partial))\n"
        "except InterpError as error:\n"
        "    print('refused:', error)\n"
    )
    path = tmp_path / "x.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
    )
    assert "refused: writing" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_nothing_half_written(tmp_path, monkeypatch):
    target = tmp_path / "x.bin"
    target.write_bytes(b"old")

    def full(path):
        path.write_bytes(b"ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(InterpError, match="No space left"):
        write_atomically(target, full)
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["x.bin"]


def _write_many(path):
    for _ in range(200):
        write_atomically(path, lambda partial: partial.write_bytes(b"a" * 10_000))


@pytest.mark.long
def test_two_processes_one_entry(tmp_path):
    path = tmp_path / "entry.bin"
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_write_many, args=(path,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        if path.exists():
            assert path.stat().st_size == 10_000
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["entry.bin"]


def test_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path


@pytest.mark.parametrize("positions", [[-1, -1, -1], [-1], [0, 99], [-99, 0]])
def test_positions_that_do_not_fit_are_refused(family_models, positions):
    with pytest.raises(InterpError, match="position"):
        run_with_cache(
            family_models["llama"], [(1, 2, 3), (4, 5)], sites=["z"], positions=positions
        )
