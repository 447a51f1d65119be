"""Classification of images in folders, one folder a class, as ImageNet is unpacked: the likeliest of the class names."""

from collections.abc import Mapping
from pathlib import Path

from flamingo_lite.data.images import IMAGE_SUFFIXES
from flamingo_lite.document import Image
from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.demonstrations import Example
from flamingo_lite.evaluation.metrics import Scored
from flamingo_lite.evaluation.metrics.scored import matched
from flamingo_lite.evaluation.tasks.files import CONTROLS, Wording, one_split, worded
from flamingo_lite.evaluation.tasks.task import Items, Style, Task

# OpenFlamingo's prompt, without a blank before the name.
WORDINGS = {"openflamingo": Wording("Output:", "{answer}")}


def load(files: Mapping[str, str]) -> Items:
    """Errors: `FlamingoError` for a folder without classes, and names that do not fit the folders."""
    names = class_names(files["images"], files.get("classes"))
    support = files.get("support")
    return one_split(_examples(files["images"], names), _examples(support, names) if support else [])


def class_names(folder: str, path: str | None) -> dict[str, str]:
    """The name of each class by its folder: by a file of lines "FOLDER NAME", or the folder's own with blanks.

    Errors: `FlamingoError` for a folder without folders, a line without a name, a class without a line, and a name
    that two classes have.
    """
    folders = sorted(path.name for path in Path(folder).iterdir() if path.is_dir())
    if not folders:
        raise FlamingoError(f"{folder}: holds no folders; expected one for each class")
    names = {name: name.replace("_", " ") for name in folders} if path is None else _lines(path)
    if missing := [name for name in folders if name not in names]:
        raise FlamingoError(f"{path}: names no class {missing[0]}, which is a folder of {folder}")
    known: dict[str, str] = {}
    for name in folders:
        if (other := known.setdefault(names[name], name)) != name:
            raise FlamingoError(
                f"the classes {other} and {name} are both called {names[name]!r}; expected a name for each"
            )
    return {name: names[name] for name in folders}


def _lines(path: str) -> dict[str, str]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FlamingoError(f"{path}: cannot be read as UTF-8; expected lines of FOLDER NAME") from error
    names = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            head, _, name = line.strip().partition("\t" if "\t" in line else " ")
            if not name.strip():
                raise FlamingoError(f"{path}: line {number} is {line.strip()!r}; expected FOLDER NAME")
            names[head] = name.strip()
    return names


def _examples(folder: str, names: Mapping[str, str]) -> list[Example]:
    """The images of all classes, sorted by their paths."""
    choices, found = tuple(names.values()), []
    for name in names:
        for path in sorted((Path(folder) / name).rglob("*")):
            if path.suffix.lower().lstrip(".") in IMAGE_SUFFIXES and not path.name.startswith("."):
                key = path.relative_to(folder).as_posix()
                found.append(Example(key, (Image(path, keeps_data=False),), "", names[name], choices=choices))
    return found


def said(text: str, example: Example) -> Scored:
    name = text.strip()
    return matched(name if name in example.choices else None, example.answer)


IMAGE_FOLDERS = Task(
    name="image_folders",
    asks="what an image shows, of the names of all classes",
    splits={"test": "the images of the given folder"},
    styles={
        "openflamingo": Style(
            said, "accuracy", candidates=lambda example: example.choices, ranking="per_token"
        )
    },
    write=worded(WORDINGS),
    load=load,
    files={
        "images": "a folder with one folder of images for each class",
        "classes": "a text file of lines FOLDER NAME; without it the folders are the names",
        "support": "a folder of the same layout, for demonstrations",
    },
    optional=frozenset({"classes", "support"}),
    controls=CONTROLS,
    instruction="Name what the image shows.",
)
