"""The report of the refusal study."""
