"""Inputs of converters, made as their publishers describe them.

MMC4: github.com/allenai/mmc4, README "Documents" (text_list, url, image_info with image_name, raw_url, face_detections,
matched_text_index and matched_sim, similarity_matrix of images x sentences, could_have_url_duplicate); one JSON document
a line, the images in a folder by their image_name (scripts/download_images.py). OpenFlamingo's tars: its
scripts/convert_mmc4_to_wds.py, the same document as KEY.json with image_base64 in image_info.
OBELICS: huggingface.co/datasets/HuggingFaceM4/OBELICS, "Data Fields" (images, texts, metadata, general_metadata).
img2dataset: github.com/rom1504/img2dataset, README "File format" (webdataset: KEY.jpg, KEY.txt, KEY.json).
"""

import base64
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow
import pyarrow.parquet


def picture(seed: int, size: tuple[int, int] = (96, 80), kind: str = "JPEG") -> bytes:
    """Noise, so that an image of 96 x 80 pixels has more than the 11 KB that MMC4's recipe asks for."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    PIL.Image.fromarray(noise).save(buffer, kind, **options)
    return buffer.getvalue()


def mmc4_page(sentences: Sequence[str], similarity: Any, prefix: str = "page") -> dict[str, Any]:
    """One document of MMC4; `similarity`: images x sentences."""
    matrix = np.asarray(similarity, dtype=float).reshape(-1, len(sentences))
    images = [
        {
            "image_name": f"{prefix}_{i}.jpg",
            "raw_url": f"http://example.org/{prefix}/{i}.jpg",
            "matched_text_index": int(row.argmax()),
            "matched_sim": float(row.max()),
            "face_detections": None,
        }
        for i, row in enumerate(matrix)
    ]
    return {
        "url": f"http://example.org/{prefix}",
        "text_list": list(sentences),
        "image_info": images,
        "similarity_matrix": matrix.tolist(),
        "could_have_url_duplicate": 0,
    }


def with_images(page: dict[str, Any], images: Mapping[int, bytes]) -> dict[str, Any]:
    """The page as OpenFlamingo's script writes it: images in base64 where they could be had."""
    infos = [
        {**info, "image_base64": base64.b64encode(images[i]).decode()} if i in images else info
        for i, info in enumerate(page["image_info"])
    ]
    return {**page, "image_info": infos}


def write_lines(path: Path, records: Sequence[Any]) -> Path:
    """A file of JSON lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    """A plain tar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def img2dataset_members(key: str, image: bytes, url: str, caption: str, **more: Any) -> dict[str, bytes]:
    """The members of one sample, the json with the columns that img2dataset always keeps."""
    about = {
        "caption": caption, "url": url, "key": key, "status": "success", "error_message": None,
        "width": 96, "height": 80, "original_width": 96, "original_height": 80, "exif": "{}", "sha256": "",
        **more,
    }  # fmt: skip
    return {f"{key}.jpg": image, f"{key}.txt": caption.encode(), f"{key}.json": json.dumps(about).encode()}


def obelics_row(slots: Sequence[str], url: str = "http://example.org/page") -> dict[str, Any]:
    """One row; a slot that begins with http is an image."""
    is_image = [slot.startswith("http") for slot in slots]
    metadata = [
        {"document_url": url, "unformatted_src": slot, "src": slot, "alt_text": f"alt of {slot}"}
        if image
        else None
        for slot, image in zip(slots, is_image, strict=True)
    ]
    return {
        "images": [slot if image else None for slot, image in zip(slots, is_image, strict=True)],
        "metadata": json.dumps(metadata),
        "general_metadata": json.dumps({"url": url, "warc_filename": "x.warc.gz"}),
        "texts": [None if image else slot for slot, image in zip(slots, is_image, strict=True)],
    }


def write_obelics(path: Path, rows: Sequence[dict[str, Any]], row_group: int = 1000) -> Path:
    """A parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pyarrow.schema(
        [
            ("images", pyarrow.list_(pyarrow.string())),
            ("metadata", pyarrow.string()),
            ("general_metadata", pyarrow.string()),
            ("texts", pyarrow.list_(pyarrow.string())),
        ]
    )
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows), schema), path, row_group_size=row_group)
    return path
