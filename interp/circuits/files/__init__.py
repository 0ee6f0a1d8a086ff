"""Circuits on disk: the format of the MIB benchmark, and circuits kept by name."""
