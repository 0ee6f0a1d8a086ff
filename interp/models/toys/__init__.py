"""Tiny transformers with a circuit planted by hand: the answer key for every search method."""
