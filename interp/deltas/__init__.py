"""Changes of weights: merge, compress, undo, and what they do to a behaviour and its heads."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
