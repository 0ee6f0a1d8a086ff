"""The steps of the refusal study."""
