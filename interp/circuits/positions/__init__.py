"""Circuits whose edges are kept at some token positions only."""
