"""The one exception this package raises on purpose."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InterpError(Exception):
    """Something the caller can fix: what was asked, what was found, what to do.

    Any other exception that leaves the package is a bug.
    """

    def __init__(self, asked: str, found: str, do: str) -> None:
        self.asked, self.found, self.do = asked, found, do
        super().__init__(f"{asked}: {found}; {do}")

    def __reduce__(self) -> tuple[type[InterpError], tuple[str, str, str]]:
        return type(self), (self.asked, self.found, self.do)


def unknown(kind: str, name: object, known: Iterable[str]) -> InterpError:
    """The error for a name that is not in a list of known names. It suggests the nearest one.

    A known name that begins with it is nearer than any other, and capitals do not count.
    """
    known = sorted(known)
    low = name.lower() if isinstance(name, str) else ""
    near = [one for one in known if low and one.lower().startswith(low)]
    lowered = {one.lower(): one for one in known}
    near = near or [lowered[x] for x in difflib.get_close_matches(low, lowered, n=1, cutoff=0.4)]
    hint = f"did you mean {near[0]!r}? " if near else ""
    names = ", ".join(known) or "none"
    return InterpError(f"{kind} {name!r:.80}", "no such name", f"{hint}known: {names}")
