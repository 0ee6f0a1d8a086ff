"""Criteria that are written down and hashed before a measurement is made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from interp.core.errors import InterpError
from interp.core.files import content_key, json_text, write_atomically


@dataclass(frozen=True, kw_only=True)
class Criteria:
    """Least values that rows have to reach, written down before a measurement is made.

    `at_least` holds a least value for the lower end of the interval of each named row. `hash` is
    that of the content: publish it before the run, and anyone can check it afterwards.
    """

    at_least: Mapping[str, float]

    @property
    def hash(self) -> str:
        """The hash of the content."""
        return content_key({"at_least": dict(sorted(self.at_least.items()))})

    def save(self, path: str | Path) -> str:
        """Write a JSON file with the criteria and their hash; returns the hash."""
        text = json_text({"at_least": dict(self.at_least), "hash": self.hash}, indent=1)
        write_atomically(Path(path), lambda place: place.write_text(text, encoding="utf-8"))
        return self.hash

    @classmethod
    def load(cls, path: str | Path) -> Criteria:
        """Read criteria.

        Raises:
            InterpError: no such file, another format, or criteria that were changed after saving.
        """
        try:
            told = json.loads(Path(path).read_text(encoding="utf-8"))
            found = cls(at_least={str(name): float(x) for name, x in told["at_least"].items()})
            said = str(told["hash"])
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise InterpError(
                f"criteria in {path}", f"{type(error).__name__}: {error}", "write it with .save()"
            ) from error
        if said != found.hash:
            raise InterpError(
                f"criteria in {path}",
                f"their hash is {found.hash}, the file says {said[:20]}",
                "use the file as it was saved before the run",
            )
        return found
