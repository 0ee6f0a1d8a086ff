"""Types that all packages use: components, prompts, tasks, metrics, statistics and errors."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
