"""Pages about studies of circuit reuse."""
