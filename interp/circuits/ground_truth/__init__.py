"""Models whose circuit is known, and how well each method recovers it."""
