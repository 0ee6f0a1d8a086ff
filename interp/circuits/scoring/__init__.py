"""A score for every edge: gradient estimates and exact effects."""
