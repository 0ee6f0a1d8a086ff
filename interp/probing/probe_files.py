"""Probes kept by name in the cache, where Runs lists them."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from interp.core.arguments import reads_arguments
from interp.core.errors import InterpError
from interp.core.files import cache_dir
from interp.models.language_model import LanguageModel
from interp.probing.probes import Probes


@reads_arguments
def keep_probes(name: str, probes: Probes) -> Path:
    """Keep probes in the cache, where `kept_probes` finds them; earlier ones are replaced.

    Raises:
        InterpError: a name of other signs than letters, digits, - and _, or it cannot be written.
    """
    if not re.fullmatch(r"[\w-]{1,60}", name):
        raise InterpError(f"the probes {name!r:.80}", "not a name", "write it as my-topic")
    return probes.save(cache_dir() / "probes" / name)


def kept_probes(model: LanguageModel) -> dict[str, Probes]:
    """The kept probes of a model by name: of other models, and damaged ones, are left out."""
    found = {}
    for path in sorted((cache_dir() / "probes").glob("[!.]*.safetensors")):
        with suppress(InterpError):
            probes = Probes.load(path)
            if probes.source.get("model_hash") == model.hash:
                found[path.stem] = probes
    return found
