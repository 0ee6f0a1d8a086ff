"""The page Weights: which change is chosen, and how it is measured and kept."""
