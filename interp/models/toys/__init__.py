"""Tiny transformers with hand-built, known circuits, to test search methods."""
