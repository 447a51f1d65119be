"""A document of a source as numbers for training: the source's template, and what makes a document of no use."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from flamingo_lite.batch import IGNORED
from flamingo_lite.document import Document
from flamingo_lite.errors import FlamingoError, SampleError
from flamingo_lite.image_transform import ImageTransform
from flamingo_lite.names import unknown
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.text.template import Template
from flamingo_lite.text.tokenizer import Encoded
from flamingo_lite.text.writing import resolved

OF_THE_MODEL = "image_tokens"
"""The field of a template that neither a source nor a stage may change: the model's connector decides it."""


OF_THE_ENCODER = "size"
"""The same of an image transform."""


def source_template(processor: VisionLanguageProcessor, changes: Mapping[str, Any], source: str) -> Template:
    """The processor's template with a source's changes. Errors: as `changed_template`."""
    return changed_template(processor, changes, f"data.sources.{source}.template")


def changed_template(processor: VisionLanguageProcessor, changes: Mapping[str, Any], where: str) -> Template:
    """The processor's template with changes. `where`: the setting that they come from.

    Errors: `FlamingoError` naming the setting and a field that does not exist, that is the model's to decide, or whose
    token the tokenizer lacks.
    """
    _check_fields(changes, Template, OF_THE_MODEL, where)
    try:
        template = replace(processor.template, **changes)
        if template.conversation is not None:
            resolved(template.conversation, processor.tokenizer)
    except FlamingoError as error:
        raise FlamingoError(f"{where}: {error}") from error
    known = processor.tokenizer.get_vocab()
    if missing := [token for token in template.special_tokens if token not in known]:
        raise FlamingoError(
            f"{where}: the tokenizer has no token {missing[0]!r}; "
            "expected one that the model's own template or the tokenizer has"
        )
    return template


def use_changes(processor: VisionLanguageProcessor, changes: Mapping[str, Any], where: str) -> None:
    """Changes the processor's own template. Errors: as `changed_template`."""
    if changes:
        processor.use_template(changed_template(processor, changes, where))


def use_image_changes(processor: VisionLanguageProcessor, changes: Mapping[str, Any], where: str) -> None:
    """Changes how the processor prepares images. `where`: the setting that the changes come from.

    Errors: `FlamingoError` naming the setting, a field that does not exist or is the encoder's to decide, or a value
    that cannot be.
    """
    _check_fields(changes, ImageTransform, OF_THE_ENCODER, where)
    try:
        processor.image_transform = replace(processor.image_transform, **changes)
    except FlamingoError as error:
        raise FlamingoError(f"{where}: {error}") from error


def _check_fields(changes: Mapping[str, Any], of: type[Any], fixed: str, where: str) -> None:
    names = [field.name for field in fields(of) if field.name != fixed]
    for name in changes:
        if name not in names:
            raise unknown(f"field in {where}:", name, names)


def encode_for_training(
    processor: VisionLanguageProcessor,
    document: Document,
    template: Template,
    max_length: int | None,
    name: str,
) -> Encoded:
    """The complete document, cut at `max_length`. Errors: `SampleError` when nothing of it could be trained on."""
    encoded = processor.encode(document, True, max_length, name, template)
    if all(label == IGNORED for label in encoded.labels):
        raise SampleError(
            f"{name}: none of its {len(encoded)} tokens is trained on; expected a text with loss within max_length",
            "no_labels",
        )
    return encoded
