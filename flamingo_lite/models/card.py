"""The model card: what a saved model is made of, what of it trained, and how to load it; README.md on a hub.

Nothing is claimed that the model does not know: a base model's name if it can be looked up, no licence.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from flamingo_lite.models.configuration import VisionLanguageConfig

LIBRARY = "flamingo_lite"
TASK = "image-text-to-text"

PARTS = {
    ".cross_attention.": "gated cross-attention blocks",
    ".new_rows": "rows of new tokens",
    "vision.": "vision encoder",
    "connector.": "connector",
    "language.": "language model",
}
"""What to call the part that a parameter belongs to: the first entry that its name contains."""


def model_card(model: PreTrainedModel) -> str:
    """Markdown with front matter, as hubs read it."""
    config: Any = model.config  # a VisionLanguageConfig, which transformers' own annotation does not know
    fusion = str(config.fusion.get("name", "cross_attention")).replace("_", "-")
    front = {
        "library_name": LIBRARY,
        "pipeline_tag": TASK,
        "license": "unknown",
        "tags": ["vision-language", f"{fusion}-fusion"],
        "base_model": [name for name in map(_hub_name, config.sources.values()) if name],
    }
    # JSON is YAML, and quotes whatever a name may hold.
    lines = [f"{key}: {json.dumps(value)}" for key, value in front.items() if value]
    return "\n".join(
        [
            "---",
            *lines,
            "---",
            "",
            "# A vision-language model",
            "",
            _made_of(config, fusion),
            "",
            *_table(model),
            "",
            LOADING,
        ]
    )


LOADING = """## How to load it
```python
import flamingo_lite as fl

model, processor = fl.load("the directory of this file")
document = fl.Document([fl.Image("a.png"), " This is"])
print(fl.generate(model, processor, [document], max_new_tokens=8))
```
or, after `import flamingo_lite`, with transformers' `AutoModelForImageTextToText`, `AutoProcessor` and
`pipeline("image-text-to-text")`. Nothing in this directory is code, and none is run.

## Licence
Not known. Whatever the licences of the base models ask for holds for this model too.
"""


def _made_of(config: VisionLanguageConfig, fusion: str) -> str:
    connector = config.connector.get("name", "perceiver")
    return (
        f"{_described(config.sources.get('vision'), 'A vision encoder')} and "
        f"{_described(config.sources.get('language'), 'a language model')} ({config.text_config.model_type}), joined by "
        f"a connector ({connector}) and {fusion} fusion."
    )


def _described(source: Mapping[str, Any] | None, what: str) -> str:
    if not source or _is_local(str(source["name"])):
        return what
    details = [
        f"{key} {source[key]}" for key in ("pretrained", "revision") if isinstance(source.get(key), str)
    ]
    return f"{what} `{source['name']}`" + (f" ({', '.join(details)})" if details else "")


def _hub_name(source: Any) -> str | None:
    """The name of a source that a hub could have: `owner/name`, and not a path."""
    name = str(source.get("name", "")) if isinstance(source, Mapping) else ""
    return name if name.count("/") == 1 and not _is_local(name) else None


def _is_local(name: str) -> bool:
    # Written where the card is made: what is a directory here is nobody else's to look up.
    return name.startswith(("/", ".", "~")) or Path(name).is_dir()


def _table(model: nn.Module) -> list[str]:
    total: dict[str, int] = dict.fromkeys(PARTS.values(), 0)
    trained = dict(total)
    for name, parameter in model.named_parameters():
        part = next((called for mark, called in PARTS.items() if mark in name), "other")
        total[part] = total.get(part, 0) + parameter.numel()
        trained[part] = trained.get(part, 0) + parameter.numel() * parameter.requires_grad
    rows = [f"| {part} | {count:,} | {trained[part]:,} |" for part, count in total.items() if count]
    return ["| part | parameters | of them trained |", "| --- | --- | --- |", *rows]
