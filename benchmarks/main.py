"""`python -m benchmarks`: compare the package with other packages."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.sweep_peers import PEERS
from interp.cli.terminal import (
    COUNT,
    NOT_NEGATIVE,
    POSITIVE,
    CountOption,
    JsonFile,
    ModelName,
    say,
    write,
)

bench_app = typer.Typer(help="Compare the package with other packages.", no_args_is_help=True)


@bench_app.callback()
def bench() -> None:
    """Compare the time and memory of the package with other packages."""


@bench_app.command(
    "patching", epilog="Example: python -m benchmarks patching --cases a,b --json FILE"
)
def bench_patching_command(
    cases: Annotated[str, typer.Option(help="Cases to run, from a, b and c.")] = "a,b,c",
    peers: Annotated[
        str, typer.Option(help=f"Peers to run (minutes each): {', '.join(PEERS)}, or none.")
    ] = ",".join(PEERS),
    json_file: JsonFile = None,
) -> None:
    """Activation patching compared with other packages and with plain hooks, on one thread.

    A file that exists is gone on with: what it holds is not measured again.
    """
    from benchmarks.patching import bench_patching

    chosen = [] if peers == "none" else peers.split(",")
    kept = None
    if json_file is not None and json_file.exists():
        kept = json.loads(json_file.read_text(encoding="utf-8"))
    bench_patching(
        cases.split(","), log=say, peers=chosen, kept=kept, keep=partial(write, json_file)
    )


@bench_app.command(
    "device", epilog="Example: python -m benchmarks device --device cuda --json FILE"
)
def bench_device_command(
    device: Annotated[str, typer.Option(help="A device of torch, such as cuda or mps.")] = "cuda",
    cases: Annotated[str, typer.Option(help="Patching cases, from a, b and c.")] = "a,b,c",
    sizes: Annotated[str, typer.Option(help="Sizes in bfloat16, from 135m and 7b.")] = "135m,7b",
    json_file: JsonFile = None,
) -> None:
    """Every family's exactness on a device, the patching cases, and two sizes in bfloat16."""
    from benchmarks.device import bench_device

    given = [[x for x in text.split(",") if x] for text in (cases, sizes)]
    write(json_file, bench_device(device, cases=given[0], sizes=given[1], log=say))


@bench_app.command("growth", epilog="Example: python -m benchmarks growth --json FILE")
def bench_growth_command(json_file: JsonFile = None) -> None:
    """Path patching and capture over their floors, and how sweeps grow with their size."""
    from benchmarks.growth import bench_growth

    write(json_file, bench_growth(log=say))


@bench_app.command(
    "generation", epilog="Example: python -m benchmarks generation --n 300 --json FILE"
)
def bench_generation_command(
    model: ModelName = "countdown-smollm2",
    n: Annotated[int, typer.Option(parser=COUNT, help="Number of texts.")] = 300,
    json_file: JsonFile = None,
) -> None:
    """Cached generation with an intervention, compared with unchanged cached generation."""
    from benchmarks.patching import bench_generation

    write(json_file, bench_generation(model, n=n, log=say))


@bench_app.command("lens", epilog="Example: python -m benchmarks lens --layer 24 --json FILE")
def bench_lens_command(
    model: ModelName = "smollm2-135m-instruct",
    layer: Annotated[int, typer.Option(min=0, help="The lowest layer of the lens.")] = 24,
    tokens: Annotated[int, typer.Option(min=18, help="Tokens of the text.")] = 62,
    peers: Annotated[bool, typer.Option(help="Also run TransformerLens.")] = True,
    json_file: JsonFile = None,
) -> None:
    """The fit of a Jacobian lens on one text, compared with TransformerLens, on one thread."""
    from benchmarks.lenses import bench_lens

    write(json_file, bench_lens(model, layer=layer, tokens=tokens, peers=peers, log=say))


@bench_app.command(
    "circuits",
    epilog="Example: python -m benchmarks circuits --eap-python PYTHON --eap-checkout FOLDER",
)
def bench_circuits_command(
    eap_python: Annotated[
        Path | None, typer.Option(help="Python of an environment with TransformerLens 2.")
    ] = None,
    eap_checkout: Annotated[
        Path | None, typer.Option(help="A checkout of hannamw/EAP-IG, which need not be installed.")
    ] = None,
    peers: Annotated[bool, typer.Option(help="Also run the other packages (minutes).")] = True,
    n: CountOption = 16,
    length: Annotated[int, typer.Option(min=2, help="Tokens of each prompt.")] = 15,
    budget: Annotated[
        float, typer.Option(parser=POSITIVE, help="Memory for our runs, in GB.")
    ] = 0.05,
    threshold: Annotated[
        float, typer.Option(parser=NOT_NEGATIVE, help="Threshold of ACDC, as a share of the gap.")
    ] = 0.01,
    json_file: JsonFile = None,
) -> None:
    """Edge scores, curves and ACDC, compared with EAP-IG and TransformerLens on one thread."""
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
        log=say,
    )
    write(json_file, found)
