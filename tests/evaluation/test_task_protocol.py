"""What any task gets from the harness: zero shots, files, finite splits, several references, scores of a whole cell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import PIL.Image
import pytest

from flamingo_lite.config import load_config
from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.demonstrations import Example
from flamingo_lite.evaluation.grid import (
    EvaluationConfig,
    Setting,
    build_prompt,
    seeds_of,
    setting_of,
    settings,
)
from flamingo_lite.evaluation.metrics import GenerationFailure
from flamingo_lite.evaluation.metrics.captions import cider_d
from flamingo_lite.evaluation.metrics.vqa import vqa_accuracy
from flamingo_lite.evaluation.results import load_samples
from flamingo_lite.evaluation.runner import evaluate
from flamingo_lite.evaluation.tasks import TASKS, items_of
from flamingo_lite.evaluation.tasks.captions import caption_style
from flamingo_lite.evaluation.tasks.task import Items, Segments, Style, Task, exact_match, first_line, listed


def picture(number: int) -> Image:
    return Image(PIL.Image.new("RGB", (4, 4), (number, 0, 0)))


def write(example: Example, style: str, is_answered: bool) -> Segments:
    asked = (*example.images, Text(f" {example.question}", loss=False))
    return (*asked, Text(f" {example.answer}", ends_chunk=True)) if is_answered else asked


CAPTIONS = ["a red cat on a mat", "a dog in the park", "two birds in a tree", "a cat on a red sofa"]


def load(files: Mapping[str, str]) -> Items:
    queries = [
        Example(f"q{i}", (picture(i),), "what is it?", CAPTIONS[i], references=(CAPTIONS[i], "a thing"))
        for i in range(4)
    ]
    support = [Example(f"s{i}", (picture(100 + i),), "what is it?", f"answer {i}") for i in range(6)]
    return listed({"val": queries}, {"val": support})


def vqa(text: str, example: Example):
    return vqa_accuracy(text, example.right_answers)


FROM_FILES = Task(
    name="from_files",
    asks="what it is",
    splits={"val": "the published one"},
    styles={
        "direct": Style(exact_match(first_line), stop=("Question:",)),
        "vqa": Style(vqa, metric="vqa_accuracy"),
        "caption": caption_style(),
    },
    write=write,
    load=load,
    files={"annotations": "the annotation file"},
    controls=("standard", "blank_images", "no_query_image"),
    instruction="Say what it is.",
)
SETTINGS = {"tasks": ["from_files"], "splits": ["val"], "control_splits": ["val"], "resamples": 10}


@pytest.fixture(autouse=True)
def task() -> Iterator[None]:
    TASKS["from_files"] = FROM_FILES
    yield
    del TASKS["from_files"]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, dict[str, str]]:
    path = tmp_path / "annotations.json"
    path.write_text("{}")
    return {"from_files": {"annotations": str(path)}}


def config(files: dict[str, dict[str, str]], **change: object) -> EvaluationConfig:
    values = {"styles": ["direct"], "shots": [0, 2], "control_shots": [2], **SETTINGS, **change}
    return EvaluationConfig(files=files, **values)  # type: ignore[arg-type]


def texts(setting: Setting, seed: int = 0, files: dict[str, dict[str, str]] | None = None) -> list[str]:
    return [
        s.text if isinstance(s, Text) else "<image>" for s in build_prompt(setting, 0, seed, files).document
    ]


def test_zero_shots_can_begin_with_nothing_the_instruction_or_two_examples_without_images(
    files: dict[str, dict[str, str]],
) -> None:
    def written(zero_shot: str, shots: int = 0) -> list[str]:
        return texts(
            Setting("from_files", "val", "direct", "standard", shots, zero_shot=zero_shot), files=files
        )

    query = ["<image>", " what is it?"]
    assert written("plain") == query
    assert written("instruction") == ["Say what it is.", *query]
    two = written("plain", shots=2)[:-2]
    assert written("text_only") == [text for text in two if text != "<image>"] + query
    assert written("text_only", shots=2) == written("instruction", shots=2) == [*two, *query]


def test_text_only_examples_are_named_and_drawn_by_every_seed(files: dict[str, dict[str, str]]) -> None:
    asked = config(files, zero_shot="text_only", shots=[0])
    (setting, *_) = settings(asked)
    assert seeds_of(setting, asked) == asked.seeds
    drawn = {build_prompt(setting, 0, seed, files).demonstration_ids for seed in range(6)}
    assert all(len(ids) == 2 for ids in drawn)
    assert len(drawn) > 1


def test_a_task_takes_of_the_conditions_those_that_it_has(files: dict[str, dict[str, str]]) -> None:
    found = {setting.condition for setting in settings(config(files))}
    assert found == {"standard", "blank_images", "no_query_image"}


def test_several_tasks_each_take_of_the_splits_and_styles_those_that_they_have(
    files: dict[str, dict[str, str]],
) -> None:
    asked = config(
        files, tasks=["from_files", "reading"], splits=["val", "test", "handwritten"], styles=["direct", "vqa"],
        control_splits=["val", "test"],
    )  # fmt: skip
    standard = {(s.task, s.split, s.style) for s in settings(asked) if s.condition == "standard"}
    assert standard == {
        ("from_files", "val", "direct"), ("from_files", "val", "vqa"),
        ("reading", "test", "direct"), ("reading", "handwritten", "direct"),
    }  # fmt: skip


@pytest.mark.parametrize("task", ["captioning", "matching", "operator_induction"])
def test_what_is_asked_by_default_serves_every_synthetic_task(task: str) -> None:
    asked = EvaluationConfig(tasks=[task])
    assert {setting.split for setting in settings(asked)} == set(asked.splits) & set(TASKS[task].splits)
    with pytest.raises(FlamingoError, match="unknown split"):
        EvaluationConfig(tasks=[task], splits=["test", "tset"])


def test_all_queries_of_a_split_are_asked_where_there_are_fewer(files: dict[str, dict[str, str]]) -> None:
    results = evaluate(lambda d, n: [""] * len(d), config(files, conditions=["standard"]), None)
    assert [cell["n"] for cell in results["cells"]] == [4, 20]


def test_no_query_image_leaves_only_the_demonstrations_images(files: dict[str, dict[str, str]]) -> None:
    shown = texts(Setting("from_files", "val", "direct", "no_query_image", 2), files=files)
    assert shown == texts(Setting("from_files", "val", "direct", "standard", 2), files=files)[:-2] + [
        " what is it?"
    ]


def test_a_query_of_its_image_alone_cannot_be_asked_without_it() -> None:
    with pytest.raises(FlamingoError, match="nothing is asked at 0 shots in style direct"):
        build_prompt(Setting("reading", "test", "direct", "no_query_image", 0), 0, 0)


def test_any_reference_is_right_and_what_follows_the_stop_is_not_read(
    files: dict[str, dict[str, str]],
) -> None:
    def answer(documents: list[Document], n: int) -> list[str]:
        return [" a thing Question: what?"] * len(documents)

    (cell,) = evaluate(answer, config(files, shots=[0], conditions=["standard"]), None)["cells"]  # type: ignore[arg-type]
    assert cell["value"] == 1.0


def test_the_metric_is_the_styles(files: dict[str, dict[str, str]]) -> None:
    asked = config(files, styles=["direct", "vqa", "caption"], control_styles=["vqa"])
    cells = evaluate(lambda d, n: ["a thing"] * len(d), asked, None)["cells"]
    assert {cell["style"]: cell["metric"] for cell in cells} == {
        "direct": "exact_match", "vqa": "vqa_accuracy", "caption": "cider_d",
    }  # fmt: skip


def test_cider_is_that_of_the_whole_cell_with_each_querys_references_once(
    files: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    said = ["a red cat", "a dog", "a tree", "nothing of the kind"]
    asked = config(files, styles=["caption"], shots=[2], conditions=["standard"])
    # One of the five seeds fails on the last query: its references still count once.
    failing = build_prompt(settings(asked)[0], 3, 4, files).document

    def answer(documents: list[Document], n: int) -> list[str | GenerationFailure]:
        numbers = [next(i for i in range(4) if document.images[-1] == picture(i)) for document in documents]
        return [
            GenerationFailure("down") if document == failing else said[number]
            for number, document in zip(numbers, documents, strict=True)
        ]

    (cell,) = evaluate(answer, asked, tmp_path)["cells"]  # type: ignore[arg-type]
    references = [[caption, "a thing"] for caption in CAPTIONS]
    expected = cider_d(said, references)
    samples = load_samples(tmp_path)
    scores = [s["score"] for s in samples if s["status"] == "ok"]
    assert scores == pytest.approx([*expected * 4, *expected[:3]])
    assert cell["value"] == pytest.approx(sum(scores) / 19, abs=1e-6)
    assert cell["n_failed"] == 1
    assert set(cell["figures"]) == {"bleu_1", "bleu_4"}
    assert samples[0]["example_id"] == "q0"


def test_a_samples_line_gives_its_setting_back_and_so_does_an_older_one(
    files: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    asked = config(files, shots=[2], selector="fixed", order="reversed", conditions=["standard"])
    evaluate(lambda d, n: [""] * len(d), asked, tmp_path)
    sample = load_samples(tmp_path)[0]
    assert setting_of(sample) == settings(asked)[0]
    older = {k: v for k, v in sample.items() if k not in ("selector", "order", "zero_shot", "style")}
    assert setting_of(older) == Setting("from_files", "val", "", "standard", 2)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "from_files needs the annotation file; say where with eval.files.from_files.annotations=PATH"),
        ({"annotations": "/nowhere/a.json"}, "/nowhere/a.json, which does not exist"),
        ({"anotations": "x"}, "did you mean 'annotations'"),
    ],
)
def test_files_that_are_missing_or_unknown_are_one_line(files: dict[str, str], message: str) -> None:
    with pytest.raises(FlamingoError, match=message) as caught:
        items_of("from_files", {"from_files": files})
    assert "\n" not in str(caught.value)


def test_an_id_that_comes_twice_and_a_split_without_queries_are_one_line() -> None:
    example = Example("7", (), "", "")
    with pytest.raises(FlamingoError, match="the support of split val has the id 7 twice"):
        listed({"val": [example]}, {"val": [example, example]})
    with pytest.raises(FlamingoError, match="split val has no queries"):
        listed({"val": []}, {"val": [example]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"selector": "ranom"}, "did you mean 'random'"),
        ({"order": "reverse"}, "did you mean 'reversed'"),
        ({"zero_shot": "instructions"}, "did you mean 'instruction'"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"files": {"vqa2": {}}}, "unknown task 'vqa2'"),
        ({"splits": ["test"], "tasks": ["reading", "from_files"]}, "from_files has none of the splits test"),
        (
            {"styles": ["spelled"], "tasks": ["operator_induction", "reading"]},
            "reading has none of the styles",
        ),
    ],
)
def test_a_wrong_configuration_is_one_line(change: dict[str, object], message: str) -> None:
    with pytest.raises(FlamingoError, match=message) as caught:
        EvaluationConfig(**change)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_files_are_given_on_the_command_line_one_by_one_or_together() -> None:
    one = load_config(["eval.files.from_files.annotations=/data/a b.json"])
    both = load_config(["eval.files.from_files={annotations: /data/a b.json, more: x}"])
    assert one.eval.files == {"from_files": {"annotations": "/data/a b.json"}}
    assert both.eval.files == {"from_files": {"annotations": "/data/a b.json", "more": "x"}}
