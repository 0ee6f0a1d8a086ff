"""`interp circuit`: find, evaluate, locate, compare and export circuits; recover known ones."""

from __future__ import annotations

import typer

from interp.cli.circuits.evaluate import evaluate
from interp.cli.circuits.find import find
from interp.cli.circuits.positions import positions
from interp.cli.circuits.recover import recover
from interp.cli.circuits.saved import compare, export

circuit_app = typer.Typer(
    help="Circuits: find them, evaluate them, compare them.", no_args_is_help=True
)


@circuit_app.callback()
def circuit() -> None:
    """Circuits: find them, evaluate them, compare them."""


for command, example in (
    (find, "find --task ioi --n 32 --edges 200 --out ioi-circuit"),
    (evaluate, "evaluate ioi-circuit --task ioi --n 32 --json curve.json"),
    (positions, "positions ioi-circuit --task ioi --n 16 --positions IO,S1,S2,last"),
    (compare, "compare ioi-circuit other-circuit"),
    (export, "export ioi-circuit ioi-circuit.mib.json"),
    (recover, "recover reverse hist toy-or --json table.json"),
):
    circuit_app.command(epilog=f"Example: interp circuit {example}")(command)
