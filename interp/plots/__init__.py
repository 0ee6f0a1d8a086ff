"""Arrays and labels to pictures. Knows no model and no result."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
