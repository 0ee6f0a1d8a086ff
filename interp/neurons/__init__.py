"""What MLP neurons read and write, how heads and tokens relate to them, and which experts run."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
