"""A script goes on from its file only with the settings that made it."""

import json
from pathlib import Path

import pytest

from interp.core.errors import InterpError
from interp.results.provenance import resumed


def test_a_file_of_other_settings_is_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    settings = {"n": 6, "layers": (1, 2)}
    kept = resumed(path, **settings)
    assert [*kept] == ["settings"]
    kept["first"] = 1.5
    path.write_text(json.dumps(kept))
    assert resumed(path, **settings) == kept
    for other in (settings | {"n": 8}, {"n": 6}):
        with pytest.raises(InterpError, match="give another file"):
            resumed(path, **other)
    assert resumed(None, **settings).keys() == {"settings"}
    path.write_text('{"first": 1.5}')  # it does not tell its settings
    with pytest.raises(InterpError, match="its settings are unknown"):
        resumed(path, **settings)
