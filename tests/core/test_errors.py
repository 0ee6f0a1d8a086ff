"""The error for a name that is not known suggests the name that was meant."""

import pytest

from interp.core.errors import unknown

KNOWN = ("refusal-smollm2", "smollm2-135m-instruct", "ioi", "capitals")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("IOI", "ioi"),
        ("smollm2", "smollm2-135m-instruct"),
        ("refusal-smolm2", "refusal-smollm2"),
        ("", None),
        (3, None),
    ],
)
def test_the_name_that_was_meant_is_suggested(typed, meant) -> None:
    hint = "" if meant is None else f"did you mean {meant!r}? "
    assert unknown("name", typed, KNOWN).do.startswith(f"{hint}known: capitals, ")
