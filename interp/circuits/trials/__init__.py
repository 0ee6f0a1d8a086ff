"""Runs of a model in which edges outside a circuit carry replaced values."""
