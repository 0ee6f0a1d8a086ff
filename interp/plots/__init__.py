"""Figures of arrays and labels: interactive (Plotly) and static (matplotlib). No models here."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
