"""Every test of the pages has a cache of its own, and no study that ships."""

from functools import cache

import pytest

pytest.importorskip("streamlit", reason="the app's extra is not installed")

import streamlit as st
from streamlit.components.v2 import manifest_scanner

from interp.ui.shared import jobs

# A first visit reads the metadata of every installed package: here once, and not in each test.
manifest_scanner.scan_component_manifests = cache(manifest_scanner.scan_component_manifests)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    monkeypatch.setattr(jobs, "AT_ONCE", 60.0)  # a page waits for its threads
    monkeypatch.setattr("interp.studies.study.SHIPPED", tmp_path / "shipped")
    st.cache_resource.clear()
    yield
    st.cache_resource.clear()


@pytest.fixture(scope="session")
def team(tmp_path_factory):
    """A running app that serves a team; all tests that ask for it share it, and its cache."""
    from tests.browsing import running_team_app

    with running_team_app(tmp_path_factory.mktemp("team")) as served:
        yield served


@pytest.fixture
def address(tmp_path):
    """A running app of the test's own."""
    from tests.browsing import running_app  # which needs selenium

    with running_app(tmp_path) as found:
        yield found


@pytest.fixture
def browser(tmp_path):
    """A headless Chromium."""
    from tests.browsing import running_browser

    with running_browser(tmp_path) as driver:
        yield driver


@pytest.fixture
def loaded(smollm, monkeypatch):
    """The default model, which is already loaded."""
    monkeypatch.setattr("interp.load_model", lambda name, dtype: smollm)
    return smollm
