"""The graph of a decoder and runs in which single edges carry other values."""
