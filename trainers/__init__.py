"""The methods, one file each. Importing this package registers them with the toolbox."""

import sys
from importlib import import_module
from pkgutil import iter_modules

for name in ("adversarial", "base"):  # methods of other projects import them from here
    globals()[name] = sys.modules[f"{__name__}.{name}"] = import_module(f"apd.training.{name}")
for module in iter_modules(__path__):
    import_module(f"{__name__}.{module.name}")
