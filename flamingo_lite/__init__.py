"""flamingo_lite: join a vision encoder to a language model, train the join, measure what it learns in
context.

`import flamingo_lite` imports no torch: a name is resolved when it is touched. After it, transformers' Auto classes
load what this package saves.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from flamingo_lite.registration import register_with_transformers

if TYPE_CHECKING:
    from flamingo_lite.batch import Batch as Batch
    from flamingo_lite.checkpoints.formats import export as export
    from flamingo_lite.checkpoints.io import load as load
    from flamingo_lite.checkpoints.io import load_model as load_model
    from flamingo_lite.checkpoints.io import load_processor as load_processor
    from flamingo_lite.checkpoints.io import save as save
    from flamingo_lite.document import Document as Document
    from flamingo_lite.document import Image as Image
    from flamingo_lite.document import Text as Text
    from flamingo_lite.errors import FlamingoError as FlamingoError
    from flamingo_lite.generation.chat import Chat as Chat
    from flamingo_lite.generation.generate import generate as generate
    from flamingo_lite.generation.score import score as score
    from flamingo_lite.models.build import ModelConfig as ModelConfig
    from flamingo_lite.models.build import build as build
    from flamingo_lite.models.build import build_processor as build_processor
    from flamingo_lite.models.configuration import VisionLanguageConfig as VisionLanguageConfig
    from flamingo_lite.models.model import VisionLanguageModel as VisionLanguageModel
    from flamingo_lite.nn.cache import MediaCache as MediaCache
    from flamingo_lite.processing import VisionLanguageProcessor as VisionLanguageProcessor

__version__ = "0.1.0"

_HOMES = {
    "Batch": "batch",
    "Chat": "generation.chat",
    "Document": "document",
    "FlamingoError": "errors",
    "Image": "document",
    "MediaCache": "nn.cache",
    "ModelConfig": "models.build",
    "Text": "document",
    "VisionLanguageConfig": "models.configuration",
    "VisionLanguageModel": "models.model",
    "VisionLanguageProcessor": "processing",
    "build": "models.build",
    "build_processor": "models.build",
    "export": "checkpoints.formats",
    "generate": "generation.generate",
    "load": "checkpoints.io",
    "load_model": "checkpoints.io",
    "load_processor": "checkpoints.io",
    "save": "checkpoints.io",
    "score": "generation.score",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


register_with_transformers()
