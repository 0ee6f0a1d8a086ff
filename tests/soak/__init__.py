"""Long checks of what must never be lost or wrong. pytest does not collect them.

`python -m tests.soak.kills` and the others write tables to `docs/results`, and go on from what they
find there.
"""
