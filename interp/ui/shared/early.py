"""What the first model needs, imported while the first page is drawn and read: seconds of it."""

from __future__ import annotations

import gc
import threading
from contextlib import suppress
from importlib import import_module

MODULES = ("interp.ui.app", "transformers.models.llama.modeling_llama", "interp.models.families")
"""In this order: the first page needs the first of them."""

_IMPORTED = threading.Event()


def _import() -> None:
    gc.disable()  # collections took a quarter of the time; what is imported stays
    for name in MODULES:
        with suppress(Exception):  # whoever needs it imports it again, and then it is shown
            import_module(name)
    gc.freeze()
    gc.enable()
    _IMPORTED.set()
    with suppress(Exception):
        _draw()


def _draw() -> None:
    """Draw a map of one cell: the first figure takes Plotly a third of a second more."""
    from interp.plots.heatmaps import heat_map

    one = import_module("numpy").zeros((1, 1))
    heat_map(one, x="0", y="0", x_title="", y_title="", colour_title="", selected=(0, 0))


_THREAD = threading.Thread(target=_import, name="imports", daemon=True)


def begin() -> None:
    """Start to import, once in a server's life; then the first figure is drawn, for no one."""
    _THREAD.start()


def wait() -> None:
    """Wait for the imports, if they were begun: two threads must not import the same cycle."""
    if _THREAD.is_alive():
        _IMPORTED.wait()
