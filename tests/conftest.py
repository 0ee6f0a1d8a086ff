import os
from functools import cache
from pathlib import Path

os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",
)

import pytest
import torch

from interp.core.files import cache_dir
from interp.models.language_model import LanguageModel
from interp.models.loading import load_model, wrap
from tests.families import CORE, FAMILIES, LAYOUTS, tiny

torch.set_num_threads(1)
REAL_CACHE = cache_dir().resolve()


def link_models(cache: Path) -> None:
    """Give an empty cache the models that are built, and the checks of them."""
    for part in ("models", "checks"):
        (REAL_CACHE / part).mkdir(parents=True, exist_ok=True)
        if not (cache / part).exists():
            (cache / part).symlink_to(REAL_CACHE / part)


def pytest_collection_modifyitems(items):
    """Leave the families that share a layout with another one to `make test-all`."""
    others = {*FAMILIES} - {*LAYOUTS}
    for item in items:
        values = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if any(isinstance(value, str) and value in others for value in values):
            item.add_marker(pytest.mark.long)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Every test has a cache of its own."""
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))


class Families(dict):
    """Tiny random models by the name of their family, made and checked when asked for."""

    def __init__(self, cache: Path) -> None:
        super().__init__()
        self.cache = cache

    def __missing__(self, name: str) -> LanguageModel:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("INTERP_CACHE", str(self.cache))
            self[name] = wrap(tiny(name), name=f"tiny-{name}")
        return self[name]


@pytest.fixture(scope="session")
def family_models(tmp_path_factory) -> Families:
    """One tiny random model of each family, checked."""
    return Families(tmp_path_factory.mktemp("families"))


@pytest.fixture(params=CORE)
def family(request, family_models) -> LanguageModel:
    """A family of each kind of layout."""
    return family_models[request.param]


@pytest.fixture(params=list(FAMILIES))
def every_family(request, family_models) -> LanguageModel:
    """A family with a fast engine."""
    return family_models[request.param]


@pytest.fixture(scope="module")
def doubles():
    """Every family in float64, made when asked for."""

    @cache
    def get(name: str) -> LanguageModel:
        return wrap(tiny(name, torch.float64), name=f"double-{name}")

    return get


@pytest.fixture(scope="session")
def toy() -> LanguageModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INTERP_CACHE", str(REAL_CACHE))
        return load_model("toy-induction")


@pytest.fixture(scope="session")
def smollm() -> LanguageModel:
    """The embedded model, fetched on first use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INTERP_CACHE", str(REAL_CACHE))
        return load_model("smollm2-135m-instruct")
