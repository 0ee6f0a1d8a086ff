"""Kept results: which page shows one again, and two of them compared."""
