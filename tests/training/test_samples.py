"""Prompts from the training data, and what is kept of their continuations."""

from collections.abc import Callable
from pathlib import Path

from flamingo_lite.document import Document, Image, Text
from flamingo_lite.training.samples import (
    HEIGHT,
    Prompt,
    Sample,
    SampleHistory,
    picture_path,
    read_samples,
    side_by_side,
    split_last_answer,
    written,
)


def sample(step: int, generated: str = " 8") -> Sample:
    return Sample(step, 0, "<image> =", generated, " 8")


def test_the_last_trained_text_is_what_the_model_is_asked_for(image_of: Callable[[int], Image]) -> None:
    document = Document([image_of(0), Text(" =", loss=False), Text(" 8"), Text("!", loss=False)])
    found = split_last_answer(document)
    assert found is not None
    assert (written(found.document), found.target) == ("<image> =", " 8")
    assert split_last_answer(Document([Text("a", loss=False)])) is None
    assert split_last_answer(Document([Text("a")])) is None


def test_samples_of_steps_that_will_be_taken_again_are_dropped(tmp_path: Path) -> None:
    history = SampleHistory(tmp_path)
    history.add([sample(10), sample(20)], [])
    resumed = SampleHistory(tmp_path, resume_at=10)
    assert resumed.samples == [sample(10)] == read_samples(tmp_path / "generations.jsonl")


def test_a_lone_surrogate_and_a_line_that_was_cut_short_are_no_harm(tmp_path: Path) -> None:
    SampleHistory(tmp_path).add([sample(10, "\ud83d and\u2028so")], [])
    with (tmp_path / "generations.jsonl").open("a") as file:
        file.write('{"step": 20, "numb')
    assert [s.step for s in read_samples(tmp_path / "generations.jsonl")] == [10]


def test_a_file_cut_in_the_middle_of_a_letter_keeps_the_lines_before_it(tmp_path: Path) -> None:
    line = '{"step": 10, "number": 0, "prompt": "a", "generated": "\u00e9", "target": ""}\n'.encode()
    (tmp_path / "generations.jsonl").write_bytes(line + line[: line.index(b"\xc3") + 1])
    assert [s.step for s in read_samples(tmp_path / "generations.jsonl")] == [10]


def test_the_images_of_a_prompt_are_one_picture(image_of: Callable[[int], Image], tmp_path: Path) -> None:
    prompt = Prompt(Document([image_of(0), Text("a"), image_of(1), Text("b")]), "c")
    SampleHistory(tmp_path).add([sample(1)], [prompt])
    assert picture_path(tmp_path, 0).exists()
    assert side_by_side(list(prompt.document.images)).size == (2 * HEIGHT + 4, HEIGHT)
