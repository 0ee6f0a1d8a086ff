"""Parts of the circuits page."""
