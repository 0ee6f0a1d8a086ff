"""Circuits as graphs of edges: what the nodes are, how they are scored, searched and judged."""
