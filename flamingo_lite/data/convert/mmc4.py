"""MMC4: web pages as sentences and images, with the similarity of each to each; every image goes before its sentence.

Two layouts: JSON lines as published (.jsonl, or zipped), with the images in a folder; and OpenFlamingo's tars, in
which a sample is one json that holds its images in base64. Which image belongs to which sentence is decided as in
MMC4's compute_assignments.py, over the images that are there; what is dropped, as in OpenFlamingo, except that images
are counted in the order in which they stand, and single-image documents are chosen by their key.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flamingo_lite.data.convert.frame import Format, Options, Record, Reject, Unit, fields, whole_files
from flamingo_lite.data.convert.sources import image_in, json_lines, parse_json
from flamingo_lite.data.convert.tars import tar_samples
from flamingo_lite.data.convert.values import image_from_base64
from flamingo_lite.data.filters import check_bytes, check_similarity, option
from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import SampleError

REQUIRED = {"text_list": list, "similarity_matrix": list, "image_info": list}
OPTIONAL = {"url": str, "could_have_url_duplicate": int}
IMAGE_REQUIRED = {"image_name": str}
IMAGE_OPTIONAL = {
    "raw_url": str,
    "matched_text_index": int,
    "matched_sim": (int, float),
    "face_detections": (dict, list, type(None)),
    "image_base64": str,
}


@dataclass(frozen=True)
class Mmc4Options(Options):
    """The published recipe. 10,999: OpenFlamingo drops images of 10 whole kilobytes or fewer."""

    min_bytes: int = option(10_999, "an encoded image has more bytes than this")
    min_similarity: float | None = option(0.24, "cosine of an image and its sentence, at least")
    min_text: int = option(1, "characters of a document, at least")
    min_images: int = option(1, "images of a document, at least")
    max_images: int = option(6, "images of a document; those that stand behind are left out")
    single_images: float = option(
        0.5, "the share of documents with a single image that stay, by a hash of their key"
    )


def read(unit: Unit, options: Options) -> Iterator[Record]:
    """A document per page, before it the rejects of its images."""
    number = 0
    try:
        for number, data in _pages(unit.path):
            yield from page(unit, number, data, options)
    except SampleError as error:  # the rest of a damaged tar
        yield Reject(unit.key(number + 1), error.reason, str(error))


def page(unit: Unit, number: int, data: bytes, options: Options) -> Iterator[Record]:
    """One page's JSON as a document, and the images that it has to do without."""
    key, where = unit.key(number), unit.where(number)
    try:
        found = fields(parse_json(data, where), where, REQUIRED, OPTIONAL)
        similarity = matrix(found, where)
        images: dict[int, Image] = {}
        for index, info in enumerate(found["image_info"]):
            try:
                images[index] = _image(unit, info, f"{where}, image {index}", options)
            except SampleError as error:
                if error.reason == "layout":
                    raise
                yield Reject(key, error.reason, str(error), image=True)
        # Among the images that are there: one that is gone must not keep a sentence from the others.
        sentences = dict(zip(images, assign(similarity[list(images)]), strict=True))
        placed: list[tuple[int, int]] = []
        for index, sentence in sentences.items():
            try:
                check_similarity(float(similarity[index, sentence]), images[index].name, options)
                placed.append((sentence, index))
            except SampleError as error:
                yield Reject(key, error.reason, str(error), image=True)
        placed.sort()
        about = [_about(found["image_info"][i], float(similarity[i, sentence])) for sentence, i in placed]
        segments = interleave(found["text_list"], [(sentence, images[i]) for sentence, i in placed])
        yield key, Document(segments, {"url": found.get("url"), "images": about}, where)
    except SampleError as error:
        yield Reject(key, error.reason, str(error))


def matrix(page: dict[str, Any], where: str) -> np.ndarray:
    """The similarities, (images, sentences). Errors: `SampleError` for another shape, or what is no number."""
    images, texts = len(page["image_info"]), len(page["text_list"])
    if not all(isinstance(text, str) for text in page["text_list"]):
        raise SampleError(f"{where}: text_list holds something else than text", "layout")
    if not texts:
        raise SampleError(f"{where}: text_list is empty", "text")
    if not images and not page["similarity_matrix"]:
        return np.zeros((0, texts))
    try:
        found = np.array(page["similarity_matrix"])
    except ValueError:  # rows of several lengths
        found = np.array(None)
    if found.dtype.kind not in "if":
        raise SampleError(
            f"{where}: similarity_matrix holds rows that are not numbers of one length", "layout"
        )
    if found.shape != (images, texts):
        shape = " x ".join(map(str, found.shape))
        raise SampleError(
            f"{where}: similarity_matrix is {shape}; expected {images} images x {texts} sentences", "layout"
        )
    return found.astype(np.float64)


def assign(similarity: np.ndarray) -> list[int]:
    """The sentence of each image: the assignment with the greatest sum, one image a sentence (MMC4, section 2); images
    beyond the number of sentences each go to the one they are most similar to."""
    from scipy.optimize import linear_sum_assignment

    if not similarity.size:
        return []
    sentences = similarity.argmax(1)
    images, chosen = linear_sum_assignment(-similarity)
    sentences[images] = chosen
    return sentences.tolist()


def interleave(sentences: Sequence[str], placed: Sequence[tuple[int, Image]]) -> list[Text | Image]:
    """The sentences, joined by spaces, and before a sentence the images placed there, in order."""
    segments: list[Text | Image] = []
    start = 0
    for sentence, image in placed:
        if sentence > start:
            segments += _joined(sentences[start:sentence])
            start = sentence
        segments.append(image)
    return segments + _joined(sentences[start:])


def _about(info: dict[str, Any], similarity: float) -> dict[str, Any]:
    return {"name": info["image_name"], "url": info.get("raw_url"), "similarity": similarity}


def _joined(sentences: Sequence[str]) -> list[Text | Image]:
    text = " ".join(sentences).strip()
    return [Text(text)] if text else []


def _pages(path: Path) -> Iterator[tuple[int, bytes]]:
    if path.suffix == ".tar":
        return ((number, sample["json"]) for number, (_, sample) in enumerate(tar_samples(path, {"json"})))
    return json_lines(path)


def _image(unit: Unit, info: Any, where: str, options: Options) -> Image:
    """Errors: `SampleError` for an image that is not there, or is too small to be looked at."""
    fields(info, where, IMAGE_REQUIRED, IMAGE_OPTIONAL)
    if (encoded := info.get("image_base64")) is not None:
        image = image_from_base64(_unprinted(encoded), where)
    elif unit.path.suffix == ".tar":
        raise SampleError(f"{where}: has no image_base64, so it could not be downloaded", "missing")
    else:
        image = _from_folder(unit, info["image_name"], where, options)
    check_bytes(image, options)
    return image


def _from_folder(unit: Unit, name: str, where: str, options: Options) -> Image:
    """From `images`, or the folder in it that MMC4's download_images.py makes for the unit."""
    stem = unit.name.rpartition("/")[2].split(".")[0]
    for folder in ("", f"{stem}_images/", f"{stem}/"):
        try:
            return image_in(options.images, folder + name, where)
        except SampleError as error:
            if error.reason != "missing":
                raise
    raise SampleError(f"{where}: {name!r} is not in {options.images}", "missing")


def _unprinted(encoded: str) -> str:
    """OpenFlamingo's script wrote the bytes of base64 as Python prints them: b'...'."""
    return encoded[2:-1] if encoded.startswith("b'") and encoded.endswith("'") else encoded


FORMAT = Format(
    "pages of MMC4 (.jsonl, .jsonl.zip; --images), or OpenFlamingo's tars of them",
    whole_files(".jsonl", ".jsonl.gz", ".zip", ".tar"),
    read,
    Mmc4Options,
    interleaved=True,
)
