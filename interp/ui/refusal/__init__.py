"""Parts of the pages of the refusal study."""
