"""transformers' Auto classes know our config, model and processor, whichever package is imported first.

`import flamingo_lite` imports neither torch nor transformers, so a class is registered when the module of
transformers that keeps its register is imported. The model follows when the first config is made: at the end of
these modules not all of what it imports is there.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

REGISTERS = {
    "transformers.models.auto.configuration_auto": "flamingo_lite.models.configuration",
    "transformers.models.auto.processing_auto": "flamingo_lite.models.auto",
}
"""Where transformers keeps a register, and which module of ours writes itself into it on import."""


def register_with_transformers() -> None:
    """Register now what can be, and the rest as soon as transformers is imported."""
    for theirs, ours in REGISTERS.items():
        if theirs in sys.modules:
            import_module(ours)
    if not any(isinstance(finder, _Registers) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Registers())


class _Registers(MetaPathFinder):
    """Finds nothing that would not be found without it; it only sees when a register has been imported."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in REGISTERS:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                import_module(REGISTERS[name])

            loader.exec_module = execute_and_register
        return spec
