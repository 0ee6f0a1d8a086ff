"""The models that the app offers, as the command that started it said.

`interp app --models DIR --hub` also offers the models in the folders of DIR, under the folders'
names, and lets the app download from the Hugging Face hub. A link may name an offered model. Any
other name is loaded only after a click, and if that fails, only the server's log says why.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from dataclasses import replace
from pathlib import Path

import streamlit as st

import interp
from interp.core.errors import InterpError
from interp.core.records import Provenance
from interp.models.language_model import LanguageModel

LOCAL = ("localhost", "127.0.0.1")
FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP")
"""Headers that a reverse proxy adds."""
LOG = logging.getLogger(__name__)
PATH = re.compile(r"(?<![\w:/.…])(?:~|[A-Za-z]:)?[/\\](?:[^\s'\"`,;:<>/\\]+[/\\])+")
"""The folders of an absolute path, up to its last part."""


def options() -> argparse.Namespace:
    """The options of the command that started the server: models and hub."""
    parser = argparse.ArgumentParser("interp app", description=__doc__)
    parser.add_argument("--models", type=Path, metavar="DIR", help="a folder of models to offer")
    parser.add_argument("--hub", action="store_true", help="let the app download from the hub")
    mine = Path(sys.argv[0]).name == "app.py"  # otherwise another program, such as a test
    return parser.parse_args(sys.argv[1:] if mine else [])


def own_models() -> dict[str, Path]:
    """The models of the owner's folder by name; a shipped name is not taken over."""
    folder = options().models
    found = [] if folder is None else sorted(folder.glob("*/config.json"))
    shipped = {entry.name for entry in interp.known_models()}
    return {path.parent.name: path.parent for path in found if path.parent.name not in shipped}


def offered() -> dict[str, str]:
    """The models that need no further question, with what they are, the default first."""
    shipped = {entry.name: entry.description for entry in interp.known_models()}
    return shipped | dict.fromkeys(own_models(), "offered by this server")


def is_shared() -> bool:
    """Whether visitors come through a reverse proxy, so that they may be different people."""
    hosts = {str(host) for host in st.get_option("server.allowedHosts") or ()}
    return bool(hosts - {*LOCAL}) or any(name in st.context.headers for name in FORWARDED)


def load(name: str, dtype: str) -> LanguageModel:
    """An offered model, or another one that was asked for.

    Raises:
        InterpError: it cannot be loaded; for one that is not offered, without the reason.
    """
    if name in (own := own_models()):
        return replace(interp.load_model(str(own[name]), dtype=dtype), name=name)
    if name in offered():
        return interp.load_model(name, dtype=dtype)
    try:
        return interp.load_model(name, dtype=dtype)
    except Exception as error:  # whatever it is, telling it would tell what there is
        LOG.warning("loading %r: %s", name, error)
        raise InterpError(
            f"loading {name!r}",
            "it is not among the models offered here, and it could not be loaded; the server's "
            "log says why",
            "choose a listed one; whoever runs the server can offer more: interp app --models DIR "
            "--hub",
        ) from None


def without_paths(text: str) -> str:
    """A text with the server's folders taken out of it; the last part of a path stays."""
    return PATH.sub("…/", text)


def shown(text: str, origin: Provenance) -> str:
    """A text about a result, such as its call, without the folder its model lay in."""
    return text.replace(origin.model, without_paths(origin.model))


def asked() -> str | None:
    """The model that a link names, which is not offered and was not agreed to."""
    return st.session_state.get("asked-model")


def ask(name: str | None) -> None:
    """Note that a link names a model that is not offered; None forgets it."""
    st.session_state["asked-model"] = name
