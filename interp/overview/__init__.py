"""What one prompt shows: one pass with all its readings, and ranked findings confirmed exactly."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
