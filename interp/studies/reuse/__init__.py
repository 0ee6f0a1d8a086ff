"""The study of circuit reuse: Merullo et al. 2024 (arXiv 2310.08744), with controls."""
