"""What can be read from activations: logit lens, probes, and differences between two models."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
