"""What becomes of a document that a format has read: its images and texts are judged by the shared filters."""

from collections.abc import Iterator

from flamingo_lite.data.convert.frame import Format, Options, Record, Reject
from flamingo_lite.data.deny import DenyList
from flamingo_lite.data.filters import (
    check_bulk,
    check_count,
    check_image,
    check_texts,
    join_texts,
    mark_chunks,
)
from flamingo_lite.document import Document, Image
from flamingo_lite.errors import SampleError

PER_IMAGE = "images"
"""The entry of a document's meta that is a list with one item per image: it loses the items of images left out."""


def select(
    key: str, document: Document, format: Format, options: Options, deny: DenyList | None
) -> Iterator[Record]:
    """The document as it will be written, or its reject; before it, a reject for each image that was left out."""
    name = document.name or key
    try:
        check_texts(document, name, options)
        if format.interleaved:
            document, left_out = without_bad_images(document, options, deny, format.joint)
            yield from (Reject(key, error.reason, str(error), image=True) for error in left_out)
        else:
            for image in document.images:
                check_image(image, options, deny)
        check_count(len(document.images), key, name, options)
        check_bulk(document, name)
    except SampleError as error:
        yield Reject(key, error.reason, str(error))
        return
    yield key, document


def without_bad_images(
    document: Document, options: Options, deny: DenyList | None, joint: str
) -> tuple[Document, list[SampleError]]:
    """The document without the images that the filters refuse and without those above `max_images`, texts that come to
    stand side by side joined, chunks marked anew; and why each image is gone. Images are judged in order, so that a
    refused one makes room for the next."""
    left_out: list[SampleError] = []
    segments, kept = [], []
    number = 0
    for segment in document:
        if not isinstance(segment, Image):
            segments.append(segment)
            continue
        number += 1
        if len(kept) == options.max_images:
            left_out.append(SampleError(f"{segment.name}: above {options.max_images} images", "images"))
            continue
        try:
            check_image(segment, options, deny)
        except SampleError as error:
            left_out.append(error)
            continue
        segments.append(segment)
        kept.append(number - 1)
    meta = dict(document.meta)
    if PER_IMAGE in meta:
        meta[PER_IMAGE] = [meta[PER_IMAGE][i] for i in kept]
    return Document(mark_chunks(join_texts(segments, joint)), meta, document.name), left_out
