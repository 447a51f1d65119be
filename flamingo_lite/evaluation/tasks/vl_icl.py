"""VL-ICL bench: six tasks whose answers are in the demonstrations alone (Zong et al. 2025).

Prompts are those that its code writes for OpenFlamingo. Style `official` scores as its code does, `signed` with the
code's slips mended; `_concise` and `_detailed` begin the prompt with its descriptions of the task. Its two tasks of
making images are not here.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flamingo_lite.document import Image
from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.demonstrations import Example, Support, uniform_support
from flamingo_lite.evaluation.metrics import Scored
from flamingo_lite.evaluation.metrics.vl_icl import (
    vl_icl_match,
    vl_icl_number,
    vl_icl_signed,
    vl_icl_yes_no,
    vl_icl_yes_or_no,
)
from flamingo_lite.evaluation.tasks.files import (
    CONTROLS,
    ONE_SPLIT,
    Record,
    Wording,
    image_at,
    known_choice,
    mixed,
    one_split,
    records,
    worded,
)
from flamingo_lite.evaluation.tasks.task import Items, Score, Style, Task

WORDING = Wording("{question}\nAnswer:")
MAX_NEW_TOKENS = 15
OPERATORS = ("+", "-", "x")
"""A support item of operator induction has the results under all three, in this order."""
OPEN_QUESTION = "This is a"
YES_OR_NO = ("yes", "no")

ANSWERED: Mapping[str, Any] = {"image": (str, list), "question": str, "answer": (str, int)}


def load_plain(root: str, folder: Path) -> Items:
    """One question with its answer to each item; every support item fits every query."""
    return one_split(
        *(
            [
                _example(root, record, f"{kind}/{i}")
                for i, record in enumerate(_records(folder, kind, ANSWERED))
            ]
            for kind in ("query", "support")
        )
    )


def load_operators(root: str, folder: Path) -> Items:
    """The demonstrations of a query have their answers under the query's operator."""
    asked = list(_records(folder, "query", {**ANSWERED, "operator": str}))
    shown = list(_records(folder, "support", {"image": (str, list), "question": str, "answer": list}))
    supports = {
        operator: uniform_support(operator, [_result(root, r, i, place) for i, r in enumerate(shown)])
        for place, operator in enumerate(OPERATORS)
    }
    return _by_query(
        [_example(root, record, f"query/{i}") for i, record in enumerate(asked)],
        [supports[known_choice(r.fields["operator"], OPERATORS, f"{r.where}: operator")] for r in asked],
    )


def load_open_names(root: str, folder: Path) -> Items:
    """The demonstrations of a query are of its own class and of one other, which its number decides."""
    queries, supports = [], []
    for i, record in enumerate(_records(folder, "query", {**ANSWERED, "classes": list, "support": dict})):
        answer = record.fields["answer"]
        others = [name for name in record.fields["classes"] if name != answer]
        if not others:
            raise FlamingoError(f"{record.where}: classes has no other than {answer!r}; expected one more")
        names = (answer, random.Random(f"open_mi/{i}").choice(others))
        queries.append(_example(root, record, f"query/{i}", names))
        examples = [
            Example(f"support/{i}/{name}/{place}", (image,), OPEN_QUESTION, name, choices=names)
            for name in names
            for place, image in enumerate(_class_images(root, record, name))
        ]
        supports.append(uniform_support(f"query/{i}", examples))
    return _by_query(queries, supports)


def load_matching(root: str, folder: Path) -> Items:
    """A support item is a pair that is the same and one that differs."""
    queries = [
        _example(root, record, f"query/{i}", YES_OR_NO)
        for i, record in enumerate(_records(folder, "query", ANSWERED))
    ]
    support = [
        _example(root, _part(record, name), f"support/{i}/{name}", YES_OR_NO)
        for i, record in enumerate(_records(folder, "support", {"same": dict, "diff": dict}))
        for name in ("same", "diff")
    ]
    return one_split(queries, support)


def _records(folder: Path, kind: str, required: Mapping[str, Any]) -> list[Record]:
    return list(records(str(folder / f"{kind}.json"), required))


def _example(root: str, record: Record, key: str, choices: tuple[str, ...] = ()) -> Example:
    return Example(
        key, _images(root, record), record.fields["question"], str(record.fields["answer"]), choices=choices
    )


def _images(root: str, record: Record) -> tuple[Image, ...]:
    names = record.fields["image"]
    return tuple(
        image_at(root, name, record.where) for name in ([names] if isinstance(names, str) else names)
    )


def _result(root: str, record: Record, number: int, place: int) -> Example:
    results = record.fields["answer"]
    if len(results) != len(OPERATORS):
        raise FlamingoError(
            f"{record.where}: answer has {len(results)} results; expected {len(OPERATORS)}, one for each operator"
        )
    return Example(f"support/{number}", _images(root, record), record.fields["question"], str(results[place]))


def _class_images(root: str, record: Record, name: str) -> list[Image]:
    found = record.fields["support"].get(name)
    images = found.get("images") if isinstance(found, dict) else None
    if not isinstance(images, list):
        raise FlamingoError(f"{record.where}: support has no images of {name!r}, which is among its classes")
    return [image_at(root, image, record.where) for image in images]


def _part(record: Record, name: str) -> Record:
    where, part = f"{record.where}: {name}", record.fields[name]
    if missing := [field for field in ANSWERED if field not in part]:
        raise FlamingoError(f"{where}: {', '.join(missing)} is missing; expected {', '.join(ANSWERED)}")
    return Record(where, None, part)


def _by_query(queries: Sequence[Example], supports: Sequence[Support]) -> Items:
    """Items in which every query has a support of its own."""
    if not queries:
        raise FlamingoError("query.json has no queries; expected at least one")
    ordered = mixed(queries)
    support_of = {query.id: support for query, support in zip(queries, supports, strict=True)}
    return Items(
        query=lambda split, query_id: ordered[query_id],
        support=lambda split, query_id: support_of[ordered[query_id].id],
        count=lambda split: len(ordered),
    )


@dataclass(frozen=True)
class Kind:
    """A task of the bench: its folder, how it is loaded and scored, and its two descriptions."""

    folder: str
    asks: str
    load: Callable[[str, Path], Items]
    scores: Mapping[str, Callable[[str, str], Scored]]
    concise: str
    detailed: str


def task(kind: Kind) -> Task:
    openings = {"": "", "_concise": kind.concise, "_detailed": kind.detailed}
    styles = {
        f"{name}{length}": Style(_score(score), max_new_tokens=MAX_NEW_TOKENS, opening=f"{opening}\n")
        for name, score in kind.scores.items()
        for length, opening in openings.items()
    }

    def load(files: Mapping[str, str]) -> Items:
        return kind.load(files["folder"], Path(files["folder"]) / kind.folder)

    return Task(
        name=f"vl_icl_{kind.folder}",
        asks=kind.asks,
        splits=ONE_SPLIT,
        styles=styles,
        write=worded(dict.fromkeys(styles, WORDING)),
        load=load,
        files={"folder": f"the folder VL-ICL, unpacked, with {kind.folder}/query.json"},
        controls=CONTROLS,
        instruction=kind.detailed,
    )


def _score(score: Callable[[str, str], Scored]) -> Score:
    return lambda text, example: score(text, example.answer)


NUMBERS = {"official": vl_icl_number, "signed": vl_icl_signed}
WORDS = {"official": vl_icl_match}

# The descriptions are part of the published prompts and are spelled as there.
VL_ICL: tuple[Task, ...] = tuple(
    task(kind)
    for kind in (
        Kind(
            "operator_induction", "the result of an expression whose operator is hidden", load_operators, NUMBERS,
            "Induce the mathematical operator and calculate the result.",
            "The image contains two digit numbers and a ? representing the mathematical operator. Induce the "
            "mathematical operator (addition, multiplication, minus) according to the results of the in-context "
            "examples and calculate the result.",
        ),
        Kind(
            "operator_induction_interleaved", "the same, with an image for each operand", load_operators, NUMBERS,
            "Induce the mathematical operator between the two images and calculate the result.",
            "There are two input images, each representing a single digit number. Induce the mathematical operator "
            "(addition, multiplication, minus) that is applied between the two images according to the results of the "
            "in-context examples. Calculate the result for the new query images.",
        ),
        Kind(
            "clevr", "how many things of a scene have the attribute that is named", load_plain, WORDS,
            "Find objects of the given type, induce what operation to use and calculate the result.",
            "The image contains objects of different shapes, colors, sizes and materials. The question describes the "
            "attribute and its value. You need to find all objects within the image that satisfy the condition. You "
            "should induce what operation to use according to the results of the in-context examples and then "
            "calculate the result.",
        ),
        Kind(
            "textocr", "the text in the red box", load_plain, WORDS,
            "Answer with the text inside the red box.",
            "An image will be provided where a red box is drawn around the text of interest. Answer with the text "
            "inside the red box. Ensure that the transcription is precise, reflecting the exact characters, including "
            "letters, numbers, symbols.",
        ),
        Kind(
            "open_mi", "which invented name the demonstrations give to what is shown", load_open_names, WORDS,
            "Answer the question with a single word or phase.",
            "Induce the concept from the in-context examples. Answer the question with a single word or phase.",
        ),
        Kind(
            "matching_mi", "whether two images match in the way that the demonstrations show", load_matching,
            {"official": vl_icl_yes_no, "signed": vl_icl_yes_or_no},
            "Determine the output for the new pair of images.",
            "According to the few-shot examples, induce what operation to do and determine the output for the two new "
            'images. Answer with "yes" or "no".',
        ),
    )
)  # fmt: skip
