"""The steps of the reuse study."""
