"""The report of what training changed."""
