"""What lmms-eval finds under the entry point `lmms_eval.models`: our models by two names."""

from typing import Any

MODELS = "flamingo_lite.evaluation.lmms.model"


def manifests() -> list[Any]:
    """`flamingo_lite` takes prompts as a text with marks for images (and ranks); `flamingo_lite_chat` as messages."""
    # Called by lmms-eval alone, so that it is there.
    from lmms_eval.models.registry_v2 import ModelManifest

    return [
        ModelManifest("flamingo_lite", simple_class_path=f"{MODELS}.FlamingoLite"),
        ModelManifest("flamingo_lite_chat", chat_class_path=f"{MODELS}.FlamingoLiteChat"),
    ]
