"""`interp circuit` and its commands."""
