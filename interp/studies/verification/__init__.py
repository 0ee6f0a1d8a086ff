"""The study of self-verification: Lee et al. 2025 (arXiv 2504.14379), with controls."""
