"""A prompt of ours as a record of a file of lines, from which lmms-eval's parts are made: text, pictures, messages.

Pictures lie beside the file, each once, under the names of their contents.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flamingo_lite.document import IMAGE_TOKEN, Document, Image, Text, image_format
from flamingo_lite.evaluation.grid import Prompt
from flamingo_lite.evaluation.rendering import BETWEEN_EXAMPLES, turns
from flamingo_lite.evaluation.results import prompt_sha, write_atomically

SAMPLE = "flamingo_lite_sample"
"""The column: everything as one string of JSON, in which no reader of tables sees dates or numbers of its own."""
IMAGES = "images"


def record(prompt: Prompt) -> dict[str, Any]:
    """The line of a prompt. `lmms_eval` reads it with a loader of tables, hence the flat columns."""
    setting = prompt.setting
    sample = {
        "task": setting.task,
        "split": setting.split,
        "style": setting.style,
        "query_id": prompt.query_id,
        "seed": prompt.seed,
        "segments": [_segment(segment) for segment in prompt.document],
        "target": prompt.target,
        "candidates": [{"text": text.text, "ends_chunk": text.ends_chunk} for text in prompt.candidates],
    }
    return {
        "query_id": prompt.query_id,
        "seed": prompt.seed,
        "prompt_sha": prompt_sha(prompt.document),
        SAMPLE: json.dumps(sample, ensure_ascii=False),
    }


def write_images(images: Iterable[Image], folder: Path) -> None:
    """Each image's own bytes, once. Errors: `SampleError` for one that cannot be read, `FlamingoError` for a full disk."""
    for image in images:
        path = folder / IMAGES / image_name(image)
        if not path.exists():
            write_atomically(path, image.data)


def image_name(image: Image) -> str:
    return f"{image.id}.{image_format(image.data) or 'png'}"


def sample_of(doc: Mapping[str, Any]) -> dict[str, Any]:
    """What the record says."""
    return json.loads(doc[SAMPLE])


def document_of(sample: Mapping[str, Any], images: Sequence[Image]) -> Document:
    """The prompt, as it was built; `images`: its own, in order."""
    waiting = iter(images)
    return Document(
        [
            next(waiting)
            if segment["image"] is not None
            else Text(segment["text"], loss=segment["loss"], ends_chunk=segment["ends_chunk"])
            for segment in sample["segments"]
        ]
    )


def read_images(sample: Mapping[str, Any], folder: Path) -> list[Image]:
    """The sample's images in order."""
    names = [segment["image"] for segment in sample["segments"] if segment["image"] is not None]
    return [Image(folder / IMAGES / name) for name in names]


def candidates_of(sample: Mapping[str, Any]) -> list[Text]:
    """The answers to choose from, each as it continues the prompt."""
    return [Text(each["text"], ends_chunk=each["ends_chunk"]) for each in sample["candidates"]]


def marked_text(sample: Mapping[str, Any]) -> str:
    """The prompt as one text, with a mark for each image and a line for each example."""
    written = [
        IMAGE_TOKEN
        if segment["image"] is not None
        else segment["text"] + (BETWEEN_EXAMPLES if segment["ends_chunk"] else "")
        for segment in sample["segments"]
    ]
    return "".join(written)


def messages_of(document: Document) -> list[dict[str, Any]]:
    """The prompt as a conversation in lmms-eval's words: a message for each question and each answer."""
    messages: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    for segment in turns(document):
        if isinstance(segment, Image):
            images.append({"type": "image", "url": segment.pil()})
            continue
        text = [{"type": "text", "text": segment.text}] if segment.text else []
        if messages and messages[-1]["role"] == segment.role:
            messages[-1]["content"] += [*images, *text]
        else:
            messages.append({"role": segment.role, "content": [*images, *text]})
        images = []
    if images:
        messages[-1]["content"] += images
    return messages


def _segment(segment: Text | Image) -> dict[str, Any]:
    if isinstance(segment, Image):
        return {"image": image_name(segment), "text": None, "loss": None, "ends_chunk": None}
    return {"image": None, "text": segment.text, "loss": segment.loss, "ends_chunk": segment.ends_chunk}
