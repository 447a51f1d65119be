"""The processor in the register of transformers' AutoProcessor, under the config of the model that it serves."""

from __future__ import annotations

from transformers import AutoProcessor

from flamingo_lite.models.configuration import VisionLanguageConfig
from flamingo_lite.processing import VisionLanguageProcessor

AutoProcessor.register(VisionLanguageConfig, VisionLanguageProcessor, exist_ok=True)
