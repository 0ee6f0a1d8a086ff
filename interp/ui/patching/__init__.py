"""Parts of the patching page."""
