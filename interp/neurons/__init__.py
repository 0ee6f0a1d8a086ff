"""What MLP neurons read and write, and how heads and tokens relate to them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
