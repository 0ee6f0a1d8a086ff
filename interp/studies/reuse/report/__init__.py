"""The report of the reuse study."""
