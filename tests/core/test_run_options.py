"""The keywords that functions unpack: the same names and types as the records they become."""

from __future__ import annotations

from dataclasses import fields
from typing import Unpack

import pytest

from interp.circuits.trials.options import TrialOptions
from interp.core.arguments import reads_arguments
from interp.core.errors import InterpError
from interp.core.run_options import RunKeywords, RunOptions
from interp.patching.activation import activation_patching
from interp.patching.attribution import attribution_patching
from interp.patching.spec import PatchSpec, SweepKeywords, read_sweep


@pytest.mark.parametrize(
    ("keywords", "records", "only_in_the_record"),
    [
        (RunKeywords, (RunOptions,), {"cache", "engine"}),
        (SweepKeywords, (RunOptions, PatchSpec), {"cache", "engine"}),
    ],
)
def test_keywords_are_the_fields_of_their_records(keywords, records, only_in_the_record):
    listed = {name: kind.__forward_arg__ for name, kind in keywords.__annotations__.items()}
    of_records = {one.name: one.type for record in records for one in fields(record)}
    assert set(of_records) - set(listed) == only_in_the_record
    assert listed == {name: of_records[name] for name in listed}


def test_a_sweep_is_split_into_what_is_patched_and_how():
    spec, options = read_sweep(site="v", by="layer", budget_gb=2.0)
    assert spec == PatchSpec(site="v", by=("layer",))
    assert options == RunOptions(budget_gb=2.0, cancelled=options.cancelled)


@pytest.mark.parametrize("function", [activation_patching, attribution_patching])
def test_unknown_keywords_are_refused_by_name(function):
    message = r"'posn' \(did you mean 'positions'\?\); it takes model, .*budget_gb, progress"
    with pytest.raises(TypeError, match=message):
        function(None, None, posn="last")


@reads_arguments
def measure(**run: Unpack[RunKeywords]) -> RunOptions:
    return RunOptions(**run)


@pytest.mark.parametrize(
    ("record", "wrong", "words"),
    [
        (RunOptions, {"budget_gb": -4}, "budget_gb"),
        (RunOptions, {"budget_gb": float("nan")}, "budget_gb"),
        (RunOptions, {"engine": "gpu"}, "known: auto, fast, hooks"),
        (TrialOptions, {"budget_gb": 0}, "budget_gb"),
        (TrialOptions, {"direction": "up"}, "known: denoise, noise"),
        (TrialOptions, {"seed": -1}, "seed"),
    ],
)
def test_options_are_checked_where_they_are_made(record, wrong, words):
    with pytest.raises(InterpError, match=words):
        record(**wrong)


def test_unpacked_keywords_are_checked():
    assert measure(progress=print).progress is print
    with pytest.raises(InterpError, match=r"progress of measure.*of \(done, total\)"):
        measure(progress=3)
