"""A file that is converted in stretches comes to what it comes to as a whole, whatever the stretches."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conversions import FIXTURES, convert

from flamingo_lite.data.convert.choices import make_options
from flamingo_lite.data.convert.formats import FORMATS
from flamingo_lite.data.convert.frame import Reject, Unit

INPUTS: dict[str, tuple[Sequence[str], dict[str, str]]] = {
    "coco": (["coco/captions_val2017.json"], {"images": "coco/val2017"}),
    "karpathy": (["karpathy/dataset_coco.json"], {"images": "karpathy/images"}),
    "vqa_v2": (
        ["vqa_v2/v2_OpenEnded_mscoco_val2014_questions.json", "vqa_v2/v2_mscoco_val2014_annotations.json"],
        {"images": "vqa_v2/val2014"},
    ),
    "llava": (["llava/llava_instruct.json"], {"images": "llava/images"}),
    "mimic_it": (["mimic_it/LA_instructions.json"], {"images": "mimic_it/LA.json"}),
    "scienceqa": (["scienceqa/problems.json"], {}),
    "folder": (["folder"], {}),
}


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("size", [1, 2])
def test_stretches_come_to_what_the_whole_comes_to(name: str, size: int) -> None:
    inputs, words = INPUTS[name]
    paths = {key: str(FIXTURES / value) for key, value in words.items()}
    options = make_options(FORMATS[name].options, paths, name)
    [whole] = FORMATS[name].units([FIXTURES / path for path in inputs], options)
    assert whole.stop is not None and whole.stop > size
    parts = [
        replace(whole, start=start, stop=min(start + size, whole.stop))
        for start in range(0, whole.stop, size)
    ]
    read = [record for part in parts for record in records(name, part, options)]
    assert read == records(name, whole, options)
    assert len({key for key, _ in read}) == len(read)


def records(name: str, unit: Unit, options: Any) -> list[tuple[str, Any]]:
    found = FORMATS[name].read(unit, options)
    return [(r.key, (r.reason, r.message)) if isinstance(r, Reject) else r for r in found]


def test_a_file_that_has_changed_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    turn = '{"from": "gpt", "value": "%s"}'
    for number, answer in enumerate(("a", "bb")):
        path.write_text('[{"id": 1, "conversations": [' + turn % answer + "]}]", encoding="utf-8")
        [document] = convert(tmp_path / str(number), "llava", path).documents
        assert document.texts[0].text == answer
