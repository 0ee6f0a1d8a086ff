"""What one prompt shows, ranked findings confirmed exactly, and what results show together."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
