"""Load a model by name, check it and run it with hooks. Only this package uses TransformerLens."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
