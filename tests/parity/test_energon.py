"""Shards made here are what Megatron-Energon expects: its own preparation, check and loader read them.

The files that it wants beside the shards are those of docs/data.md.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner
from megatron import energon
from megatron.energon.flavors.webdataset.prepare import WebdatasetPreparator
from megatron.energon.tools.lint import command as lint

from flamingo_lite.data.shards import read_samples, write_shards
from flamingo_lite.document import Document, Image

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "data.md"


def picture(seed: int, kind: str) -> Image:
    buffer = io.BytesIO()
    values = np.random.default_rng(seed).integers(0, 256, (6 + seed, 9, 3), dtype=np.uint8)
    PIL.Image.fromarray(values).save(buffer, kind)
    return Image(buffer.getvalue())


DOCUMENTS = {
    "a": Document([picture(0, "JPEG"), "one", picture(1, "PNG"), "two"]),
    "b": Document(["words alone"]),
    "c": Document(["before", picture(2, "PNG")]),
    "d": Document([picture(3, "JPEG"), picture(4, "JPEG"), "behind both"]),
    "e": Document(["ä ü 字"]),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """Shards that Energon has prepared, and their sidecars as they were before."""
    directory = tmp_path_factory.mktemp("energon")
    manifest = write_shards(DOCUMENTS.items(), directory, samples_per_shard=2)
    sidecars = {path.name: path.read_bytes() for path in directory.glob("*.tar.idx")}
    section = DOCUMENTATION.read_text(encoding="utf-8").partition("**Megatron-Energon**")[2]
    blocks = re.findall(r"```(yaml|python)\n(.*?)```", section, re.DOTALL)
    (directory / ".nv-meta").mkdir()
    for (kind, content), name in zip(blocks, ("dataset.yaml", "sample_loader.py"), strict=True):
        assert name.endswith({"yaml": "yaml", "python": "py"}[kind])
        (directory / ".nv-meta" / name).write_text(content, encoding="utf-8")
    for name in sidecars:
        (directory / name).unlink()
    # It ends the process where a key comes twice.
    WebdatasetPreparator.prepare_dataset(
        directory, [shard.name for shard in manifest.shards], split_parts_ratio=[("train", 1.0)], workers=1
    )
    return directory, sidecars


def test_the_sidecars_are_those_that_energon_writes(prepared: tuple[Path, dict[str, bytes]]) -> None:
    directory, sidecars = prepared
    assert len(sidecars) == 3
    assert {path.name: path.read_bytes() for path in directory.glob("*.tar.idx")} == sidecars


def test_energon_reads_the_same_texts_and_images(prepared: tuple[Path, dict[str, bytes]]) -> None:
    directory, _ = prepared
    workers = energon.WorkerConfig(rank=0, world_size=1, num_workers=0)
    dataset = energon.get_val_dataset(directory, split_part="train", worker_config=workers, batch_size=1)
    found = {batch.__key__[0]: batch.sequence[0] for batch in energon.get_loader(dataset)}
    assert {key.rpartition("/")[2] for key in found} == set(DOCUMENTS)
    for key, sequence in found.items():
        expected = list(dict(read_samples(directory))[key.rpartition("/")[2]])
        assert len(sequence) == len(expected)
        for slot, segment in zip(sequence, expected, strict=True):
            check_slot(slot, segment)


def check_slot(slot: Any, segment: Any) -> None:
    if isinstance(segment, Image):
        pixels = torch.from_numpy(np.array(segment.pil())).permute(2, 0, 1)
        torch.testing.assert_close(slot * 255, pixels.float(), rtol=0, atol=1e-3)
    else:
        assert slot == segment.text


def test_energons_own_check_finds_nothing(prepared: tuple[Path, dict[str, bytes]]) -> None:
    directory, _ = prepared
    found = CliRunner().invoke(lint, [str(directory), "--split-parts", "train"])
    assert found.exit_code == 0, found.output
