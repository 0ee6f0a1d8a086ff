"""Find the heads and neurons behind what a language model does.

The most used names are here; everything else is `interp.<package>.<name>`. Names are loaded when
they are first used, so that `import interp` is quick; `__init__.pyi` lists them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.2.0"
