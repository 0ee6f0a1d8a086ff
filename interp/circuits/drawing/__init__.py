"""Circuits as layered diagrams."""
