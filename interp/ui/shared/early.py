"""What the first model needs, imported while the first page is drawn and read: seconds of it."""

from __future__ import annotations

import gc
import threading
from contextlib import suppress
from importlib import import_module

MODULES = ("interp.ui.app", "transformers.models.llama.modeling_llama", "interp.models.families")
"""In this order: the first page needs the first of them."""


def _import() -> None:
    gc.disable()  # collections took a quarter of the time; what is imported stays
    for name in MODULES:
        with suppress(Exception):  # whoever needs it imports it again, and then it is shown
            import_module(name)
    gc.freeze()
    gc.enable()


_THREAD = threading.Thread(target=_import, name="imports", daemon=True)


def begin() -> None:
    """Start to import, once in a server's life."""
    _THREAD.start()


def wait() -> None:
    """Wait until it is done, if it was begun: two threads must not import the same cycle."""
    if _THREAD.is_alive():
        _THREAD.join()
