"""The keywords that functions unpack: the same names and types as the records they become."""

from __future__ import annotations

from dataclasses import fields
from typing import Unpack

import pytest

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


def test_unpacked_keywords_are_checked():
    assert measure(progress=print).progress is print
    with pytest.raises(InterpError, match=r"progress of measure.*of \(done, total\)"):
        measure(progress=3)
