"""The graph of a decoder, and runs in which chosen edges carry other values."""
