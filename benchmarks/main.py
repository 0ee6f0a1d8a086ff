"""`python -m benchmarks`: the package beside its peers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interp.cli.terminal import (
    COUNT,
    NOT_NEGATIVE,
    POSITIVE,
    Count,
    JsonFile,
    ModelName,
    say,
    write,
)

bench_app = typer.Typer(help="Time the package beside its peers.", no_args_is_help=True)


@bench_app.callback()
def bench() -> None:
    """Time the package beside its peers."""


@bench_app.command(
    "patching", epilog="Example: python -m benchmarks patching --cases a,b --json FILE"
)
def bench_patching_command(
    cases: Annotated[str, typer.Option(help="Which of a, b, c.")] = "a,b,c",
    peers: Annotated[bool, typer.Option(help="Also run TransformerLens (minutes).")] = True,
    json_file: JsonFile = None,
) -> None:
    """Activation patching beside TransformerLens' own sweep: same weights, cells and thread."""
    from benchmarks.patching import bench_patching

    write(json_file, bench_patching(cases.split(","), say=say, peers=peers))


@bench_app.command(
    "generation", epilog="Example: python -m benchmarks generation --n 300 --json FILE"
)
def bench_generation_command(
    model: ModelName = "countdown-smollm2",
    n: Annotated[int, typer.Option(parser=COUNT, help="Number of texts.")] = 300,
    json_file: JsonFile = None,
) -> None:
    """Cached generation under intervention beside plain cached generation."""
    from benchmarks.patching import bench_generation

    write(json_file, bench_generation(model, n=n, say=say))


@bench_app.command(
    "circuits",
    epilog="Example: python -m benchmarks circuits --eap-python PYTHON --eap-checkout FOLDER",
)
def bench_circuits_command(
    eap_python: Annotated[
        Path | None, typer.Option(help="Python of an environment with TransformerLens 2.")
    ] = None,
    eap_checkout: Annotated[
        Path | None, typer.Option(help="A checkout of hannamw/EAP-IG; it is not installed.")
    ] = None,
    peers: Annotated[bool, typer.Option(help="Also run the peers (minutes).")] = True,
    n: Count = 16,
    length: Annotated[int, typer.Option(min=2, help="Tokens of each prompt.")] = 15,
    budget: Annotated[
        float, typer.Option(parser=POSITIVE, help="Memory for our runs, in GB.")
    ] = 0.05,
    threshold: Annotated[
        float, typer.Option(parser=NOT_NEGATIVE, help="ACDC's, as a share of the gap.")
    ] = 0.01,
    json_file: JsonFile = None,
) -> None:
    """Edge scores, faithfulness curves and ACDC beside EAP-IG and TransformerLens, one thread."""
    from benchmarks import circuits as bench
    from benchmarks.peers import Peers

    found = bench.bench_circuits(
        bench.SMALL,
        bench.SEARCHED,
        n=n,
        length=length,
        threshold=threshold,
        budget_gb=budget,
        peers=Peers(python=eap_python, checkout=eap_checkout) if peers else None,
        say=say,
    )
    write(json_file, found)
