"""The pages of the refusal study."""
