"""Searches for circuits: by scores, ACDC, learned masks, redundancy."""
