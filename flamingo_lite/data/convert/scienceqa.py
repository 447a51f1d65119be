"""ScienceQA: problems.json, pid_splits.json beside it, and images/<split>/<id>/image.png.

The layout is that of the dataset's own repository, and so are the prompts (`form=`), by default QCM-A: question,
context, options, then "The answer is B.". Lecture and solution are kept in the meta.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from flamingo_lite.data.convert.frame import Format, Options, Record, Unit, attempt, fields, files
from flamingo_lite.data.convert.json_records import cut, section
from flamingo_lite.data.convert.scienceqa_prompt import (
    FORMS,
    LETTERS,
    ScienceQaProblem,
    science_qa_example,
)
from flamingo_lite.data.convert.sources import image_in, parse_json
from flamingo_lite.data.convert.values import list_of, plain_text
from flamingo_lite.data.filters import option
from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import FlamingoError, SampleError
from flamingo_lite.names import check_choice

SPLITS = "pid_splits.json"
ABOUT = ("task", "grade", "subject", "topic", "category", "skill", "lecture", "solution", "split")


@dataclass(frozen=True)
class ScienceQaOptions(Options):
    images: Path | None = option(
        None, "the folder of train, val and test; images beside problems.json by default"
    )
    split: str = option("train", "train, val, test, ...: a list of pid_splits.json")
    form: str = option("QCM-A", "the orders of question and answer: QCM-LEA, QCM-ALE, CQM-A, ...")

    roles: bool = option(
        False, "the question is the user's and the answer the assistant's, to tune on conversations"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("form of ScienceQA", self.form, FORMS)


def units(inputs: Sequence[Path], options: ScienceQaOptions) -> list[Unit]:
    """Errors: `FlamingoError` unless pid_splits.json lies beside the problems and has the split."""
    found = []
    for unit in files([path / "problems.json" if path.is_dir() else path for path in inputs], ".json"):
        splits = unit.path.parent / SPLITS
        check_choice(f"split of {splits}", options.split, section(splits, dict).keys)
        found += cut(Unit(unit.path, unit.name, beside=(splits,)), section(unit.path, dict))
    return found


def read(unit: Unit, options: ScienceQaOptions) -> Iterator[Record]:
    """The problems of the split; those of other splits are passed over."""
    wanted = _split(unit.beside[0], options.split)
    for number, key, data in section(unit.path, dict).items(unit.start, unit.stop):
        if key in wanted:
            where = f"{unit.where(number)} ({key})"
            yield attempt(unit.key(number), partial(_document, options, unit, str(key), data, where))


def _document(options: ScienceQaOptions, unit: Unit, key: str, data: bytes, where: str) -> Document:
    """The image if there is one, the question, which is not trained on, and the answer, which is."""
    required = {"question": str, "choices": list, "answer": int, "hint": str, "image": (str, type(None))}
    problem = fields(parse_json(data, where), where, {**required, **dict.fromkeys(ABOUT, str)})
    choices = list_of(str, problem["choices"], f"{where}: choices")
    if not 0 <= problem["answer"] < len(choices) <= len(LETTERS):
        raise SampleError(
            f"{where}: answer {problem['answer']} of {len(choices)} choices; expected one of up to {len(LETTERS)}",
            "reference",
        )
    image: list[Image] = []
    if problem["image"] is not None:
        folder = options.images or unit.path.parent / "images"
        image = [image_in(folder, f"{problem['split']}/{key}/{problem['image']}", where)]
    question = plain_text(problem["question"], f"{where}: question")
    written = ScienceQaProblem(
        question, choices, problem["answer"], problem["hint"], problem["lecture"], problem["solution"]
    )
    asked, answered = science_qa_example(written, options.form)
    meta = {"id": key, "answer": problem["answer"], "choices": choices}
    said = [Text(asked, loss=False), Text(answered, ends_chunk=True)]
    if options.roles:
        # As an evaluation shows its prompts as turns (eval.rendering=turns).
        said = [Text(asked, False, "user"), Text(answered.strip(), True, "assistant", ends_chunk=True)]
    return Document(
        [*image, *said],
        {**meta, **{name: problem[name] for name in ABOUT}},
    )


@lru_cache(maxsize=4)
def _split(path: Path, name: str) -> frozenset[str]:
    splits = section(path, dict)
    problems = parse_json(splits.read(splits.numbers[name]), f"{path}: {name}")
    if not isinstance(problems, list):
        raise FlamingoError(f"{path}: {name} is a {type(problems).__name__}; expected a list of ids")
    return frozenset(list_of(str, problems, f"{path}: {name}"))


FORMAT = Format("ScienceQA: problems.json, pid_splits.json and images/", units, read, ScienceQaOptions)
