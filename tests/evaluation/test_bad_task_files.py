"""What is wrong with a task's files ends in one line that names the file, the record, or the image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from file_tasks import Files, make_files

from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.grid import Setting, build_prompt
from flamingo_lite.evaluation.tasks import TASKS, items_of
from flamingo_lite.evaluation.tasks.from_files import FROM_FILES

NAMES = [task.name for task in FROM_FILES]
JSON = [name for name in NAMES if name != "image_folders"]


def refused(task: str, files: Files) -> str:
    """The one line with which loading ends."""
    with pytest.raises(FlamingoError) as caught:
        items_of(task, {task: files})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def first_json(task: str, files: Files) -> Path:
    """The file of the queries."""
    if "folder" in files:
        folder = Path(files["folder"])
        return (
            folder / "problems.json"
            if task == "science_qa"
            else folder / task[len("vl_icl_") :] / "query.json"
        )
    return Path(files["questions" if "questions" in files else "annotations"])


@pytest.mark.parametrize("task", JSON)
@pytest.mark.parametrize(
    "content", ['[{"id": 1}]', '{"questions": [{}], "images": [{}], "data": [{}]}', "no JSON"]
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, task: str, content: str) -> None:
    files = make_files(task, tmp_path)
    path = first_json(task, files)
    path.write_text(content, encoding="utf-8")
    assert str(path) in refused(task, files)


@pytest.mark.parametrize("task", JSON)
def test_a_missing_image_is_named_with_its_record(tmp_path: Path, task: str) -> None:
    files = make_files(task, tmp_path)
    split = next(iter(TASKS[task].splits))
    items = items_of(task, {task: files})
    images = [image for i in range(items.count(split) or 0) for image in items.query(split, i).images]
    Path(images[0].name).unlink()
    (tmp_path / "again").symlink_to(tmp_path)  # another name: what was loaded is kept
    moved = {name: str(tmp_path / "again" / Path(path).relative_to(tmp_path)) for name, path in files.items()}
    message = refused(task, moved)
    assert Path(images[0].name).name in message
    assert "is not in" in message and ("record" in message or "line" in message)


@pytest.mark.parametrize("task", NAMES)
def test_more_shots_than_the_support_has_is_one_line(tmp_path: Path, task: str) -> None:
    files = {task: make_files(task, tmp_path)}
    setting = Setting(task, next(iter(TASKS[task].splits)), next(iter(TASKS[task].styles)), "standard", 50)
    with pytest.raises(
        FlamingoError, match=f"{task}, split test: the support gave . distinct examples for 50 shots"
    ):
        build_prompt(setting, 0, 0, files)


WITHOUT_SUPPORT = [
    task.name for task in FROM_FILES if any(name.startswith("support") for name in task.optional)
]


@pytest.mark.parametrize("task", WITHOUT_SUPPORT)
def test_without_a_support_there_are_no_shots(tmp_path: Path, task: str) -> None:
    files = make_files(task, tmp_path)
    alone = {task: {name: path for name, path in files.items() if not name.startswith("support")}}
    split, style = next(iter(TASKS[task].splits)), next(iter(TASKS[task].styles))
    assert len(build_prompt(Setting(task, split, style, "standard", 0), 0, 0, alone).document)
    with pytest.raises(FlamingoError, match=f"nothing to demonstrate 2 shots with.*eval.files.{task}"):
        build_prompt(Setting(task, split, style, "standard", 2), 0, 0, alone)


def listed(value: Any) -> list[Any]:
    """The records of a file, wherever they are in it."""
    return value if isinstance(value, list) else next(v for v in value.values() if isinstance(v, list))


@pytest.mark.parametrize(
    "task", ["vqav2", "textvqa", "vizwiz", "mathverse", "ocrbench", "coco_captions", "flickr30k_captions"]
)
def test_an_id_that_comes_twice_is_named(tmp_path: Path, task: str) -> None:
    files = make_files(task, tmp_path)
    path = first_json(task, files)
    value = json.loads(path.read_bytes())
    listed(value).append(listed(value)[0])
    path.write_text(json.dumps(value), encoding="utf-8")
    assert "twice; expected each once" in refused(task, files)


@pytest.mark.parametrize("task", ["pope", "hateful_memes"])
def test_a_line_that_comes_twice_is_named(tmp_path: Path, task: str) -> None:
    files = make_files(task, tmp_path)
    path = first_json(task, files)
    path.write_bytes(path.read_bytes() * 2)
    assert "twice; expected each once" in refused(task, files)


@pytest.mark.parametrize("task", ["mathvista", "gqa", "science_qa"])
def test_a_key_that_comes_twice_is_named(tmp_path: Path, task: str) -> None:
    files = make_files(task, tmp_path)
    path = first_json(task, files)
    text = path.read_text(encoding="utf-8").removesuffix("}")
    key, value = next(iter(json.loads(path.read_bytes()).items()))
    path.write_text(f"{text}, {json.dumps(key)}: {json.dumps(value)}}}", encoding="utf-8")
    assert f"has '{key}' twice" in refused(task, files)


def changed(path: Path, number: int, **fields: Any) -> None:
    """Sets fields of one record of a file, or takes them out (None)."""
    value = json.loads(path.read_bytes())
    is_keyed = isinstance(value, dict) and all(isinstance(record, dict) for record in value.values())
    records = list(value.values()) if is_keyed else listed(value)
    for name, field in fields.items():
        if field is None:
            del records[number][name]
        else:
            records[number][name] = field
    path.write_text(json.dumps(value), encoding="utf-8")


@pytest.mark.parametrize(
    ("task", "fields", "message"),
    [
        ("vqav2", {"question_id": 77}, "question_id 77 is not in"),
        ("vqav2", {"image_id": "7"}, "image_id is a str, not a int"),
        ("textvqa", {"answers": None}, "has no answers; expected train or val"),
        ("textvqa", {"answers": [3]}, r"its answers are \[3\]; expected texts"),
        ("vizwiz", {"answers": []}, "expected texts, at least one"),
        ("gqa", {"imageId": "../x"}, "lies outside"),
        ("coco_captions", {"sentences": [{"text": "a"}]}, "its sentences are no captions"),
        ("mathvista", {"answer": ""}, "has no answer; expected testmini"),
        ("mathvista", {"answer_type": "complex"}, "what is to be answered is"),
        (
            "mathverse",
            {"question_type": "proof"},
            "question_type is 'proof'; expected multi-choice, free-form",
        ),
        ("ocrbench", {"type": "Poetry"}, "type is 'Poetry'; expected Regular"),
        ("clevr_math", {"answer": "many"}, "answer is a str, not a int"),
        ("science_qa", {"answer": 5}, "answer 5 of"),
        ("science_qa", {"grade": "grade20"}, "grade 'grade20'"),
        ("vl_icl_operator_induction", {"operator": "/"}, "operator is '/'; expected"),
        ("vl_icl_open_mi", {"classes": ["dax"]}, "classes has no other than 'dax'"),
        ("vl_icl_open_mi", {"support": {"dax": {}}}, "support has no images of"),
    ],
)
def test_a_record_that_makes_no_sense_is_named(
    tmp_path: Path, task: str, fields: dict[str, Any], message: str
) -> None:
    files = make_files(task, tmp_path)
    changed(first_json(task, files), 0, **fields)
    with pytest.raises(FlamingoError, match=message):
        items_of(task, {task: files})


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("answer", [1, 2], "answer has 2 results; expected 3, one for each operator"),
        ("answer", 3, "answer is a int, not a list"),
    ],
)
def test_a_support_item_without_three_results_is_named(
    tmp_path: Path, part: str, value: Any, message: str
) -> None:
    files = make_files("vl_icl_operator_induction", tmp_path)
    changed(Path(files["folder"]) / "operator_induction" / "support.json", 1, **{part: value})
    assert message in refused("vl_icl_operator_induction", files)


def test_questions_and_annotations_of_two_splits_are_refused(tmp_path: Path) -> None:
    files = make_files("vqav2", tmp_path)
    message = refused("vqav2", {**files, "annotations": files["support_annotations"]})
    assert "is of val2014" in message and "of train2014; expected one split" in message


def test_a_support_of_which_a_part_is_missing_is_refused(tmp_path: Path) -> None:
    files = make_files("vqav2", tmp_path)
    del files["support_images"]
    assert "only support_questions, support_annotations is given; expected all or none" in refused(
        "vqav2", files
    )


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("n01 tench\n", "names no class n02"),
        ("n01 tench\nn02\n", "line 2 is 'n02'; expected FOLDER NAME"),
        ("n01 tench\nn02 tench\n", "n01 and n02 are both called 'tench'"),
    ],
)
def test_class_names_that_do_not_fit_the_folders_are_refused(
    tmp_path: Path, lines: str, message: str
) -> None:
    files = make_files("image_folders", tmp_path)
    Path(files["classes"]).write_text(lines, encoding="utf-8")
    assert message in refused("image_folders", files)


def test_a_folder_without_classes_is_refused(tmp_path: Path) -> None:
    files = make_files("image_folders", tmp_path)
    assert "holds no folders" in refused("image_folders", {"images": str(Path(files["images"]) / "n01")})


def test_a_file_that_is_not_given_says_how_to_give_it() -> None:
    assert refused("gqa", {}) == (
        "gqa needs testdev_balanced_questions.json; say where with eval.files.gqa.questions=PATH"
    )
