"""Features of sparse autoencoders and transcoders: when they fire, and what they do."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
