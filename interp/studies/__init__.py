"""Whole studies: what is measured, in order, and the report."""
