"""Every task from files: what it asks, word for word; that right answers score; and what is wrong with files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from file_tasks import Files, make_files, pictures

from flamingo_lite.document import Document, Text
from flamingo_lite.evaluation.grid import EvaluationConfig, Setting, build_prompt
from flamingo_lite.evaluation.ranking import Likelihood
from flamingo_lite.evaluation.runner import evaluate
from flamingo_lite.evaluation.tasks import TASKS, items_of
from flamingo_lite.evaluation.tasks.from_files import FROM_FILES
from flamingo_lite.evaluation.tasks.task import continuation

NAMES = [task.name for task in FROM_FILES]
STYLED = [(task.name, style) for task in FROM_FILES for style in task.styles]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Files]:
    return {name: make_files(name, tmp_path_factory.mktemp(name)) for name in NAMES}


def as_text(document: Document) -> str:
    """As OpenFlamingo's prompts are written."""
    return "".join(
        s.text + ("<|endofchunk|>" if s.ends_chunk else "") if isinstance(s, Text) else "<image>"
        for s in document
    )


def prompt(files: dict[str, Files], task: str, style: str, shots: int, query_id: int = 0) -> str:
    setting = Setting(task, next(iter(TASKS[task].splits)), style, "standard", shots)
    return as_text(build_prompt(setting, query_id, 0, files).document)


ASKED_WITHOUT_DEMONSTRATIONS = {
    ("vqav2", "openflamingo"): "<image>Question:What is it, 0? Short answer:",
    ("vqav2", "instruction"): "<image>What is it, 0?\nAnswer the question using a single word or phrase.",
    ("ok_vqa", "openflamingo"): "<image>Question:What is it, 0? Short answer:",
    ("textvqa", "openflamingo"): "<image>Question:what is number 0? Short answer:",
    ("vizwiz", "instruction"): "<image>What is this?\nWhen the provided information is insufficient, respond with "
    "'Unanswerable'.\nAnswer the question using a single word or phrase.",
    ("gqa", "instruction"): "<image>What is left of it, 0?\nAnswer the question using a single word or phrase.",
    ("clevr_math", "openflamingo"): "<image>Question:Subtract all red things. How many objects are left? Short answer:",
    ("pope", "instruction"): "<image>Is there a dog in the image?\nAnswer the question using a single word or phrase.",
    ("coco_captions", "openflamingo"): "<image>Output:",
    ("flickr30k_captions", "instruction"): "<image>Provide a one-sentence caption for the provided image.",
    ("hateful_memes", "openflamingo"): "<image>is an image with: 'words 0' written on it. Is it hateful? Answer:",
    ("image_folders", "openflamingo"): "<image>Output:",
    ("ocrbench", "plain"): "<image>what is written in the image?",
    ("mathverse", "query_wo"): "Please directly answer.\nQuestion: AB is 4. Find x.\nChoices:\nA:40\nB:60",
    ("mathvista", "query"): "<image>Hint: Please answer the question requiring an integer answer and provide the final "
    "value, e.g., 1, 2, 3, at the end.\nQuestion: what is the total volume of the measuring cup? (Unit: g)",
    ("mathvista", "direct"): "<image>what is the total volume of the measuring cup? (Unit: g)\n"
    "Answer the question using a single integer number.",
    ("science_qa", "QCM-A"): "<image>Question: Which is it, 5?\nContext: N/A\n"
    "Options: (A) a ball (B) a box (C) a wall\nAnswer:",
    ("vl_icl_operator_induction", "official"): "\n<image>What is the result of the following mathematical expression?"
    "\nAnswer:",
    ("vl_icl_operator_induction_interleaved", "signed_concise"): "Induce the mathematical operator between the two "
    "images and calculate the result.\n<image><image>What is the result of the following mathematical expression?"
    "\nAnswer:",
    ("vl_icl_matching_mi", "official"): "\n<image><image>Do they match?\nAnswer:",
}  # fmt: skip


@pytest.mark.parametrize(("task", "style"), ASKED_WITHOUT_DEMONSTRATIONS)
def test_a_question_is_asked_word_for_word(files: dict[str, Files], task: str, style: str) -> None:
    count = items_of(task, files).count(next(iter(TASKS[task].splits))) or 0
    assert ASKED_WITHOUT_DEMONSTRATIONS[task, style] in [
        prompt(files, task, style, 0, i) for i in range(count)
    ]


DEMONSTRATED = {
    ("vqav2", "openflamingo"): "<image>Question:What is it, {}? Short answer:thing {}<|endofchunk|>",
    (
        "ok_vqa",
        "instruction",
    ): "<image>What is it, {}?\nAnswer the question using a single word or phrase. thing {}<|endofchunk|>",
    ("image_folders", "openflamingo"): "<image>Output:{}<|endofchunk|>",
    ("flickr30k_captions", "openflamingo"): "<image>Output:a dog runs on a beach, take {}.<|endofchunk|>",
    ("vl_icl_clevr", "official"): "<image>color: red\nAnswer: {}<|endofchunk|>",
}


@pytest.mark.parametrize(("task", "style"), DEMONSTRATED)
def test_a_demonstration_is_written_word_for_word(files: dict[str, Files], task: str, style: str) -> None:
    opening = TASKS[task].styles[style].opening
    head = prompt(files, task, style, 1).removeprefix(opening)
    assert re.match(re.escape(DEMONSTRATED[task, style]).replace(r"\{\}", r"[\w ]+"), head)
    assert head.endswith(prompt(files, task, style, 0).removeprefix(opening))


@pytest.mark.parametrize(("task", "style"), STYLED)
def test_the_right_answer_scores_in_full_and_another_does_not(
    files: dict[str, Files], task: str, style: str
) -> None:
    found, items = TASKS[task], items_of(task, files)
    if found.styles[style].together is not None:
        return
    score, split = found.styles[style].score, next(iter(found.splits))
    for query_id in range(items.count(split) or 0):
        query = items.query(split, query_id)
        right = score(continuation(found, query, style, query.answer).text, query)
        wrong = score("something else", query)
        # As published, the bench loses a sign and takes for a no what is not a yes; POPE takes for a yes what is no no.
        loses_sign = style.startswith("official") and query.answer.startswith("-")
        by_default = (task == "pope" and query.answer == "yes") or (
            task == "vl_icl_matching_mi" and style.startswith("official") and query.answer == "no"
        )
        assert (right.status, right.score) == ("ok", 0.0 if loses_sign else 1.0), (query, right)
        assert wrong.score == float(by_default), (query, wrong)


def without_slips(task: str) -> str:
    """A style under which a right answer scores."""
    return "signed" if "signed" in TASKS[task].styles else next(iter(TASKS[task].styles))


@pytest.mark.parametrize("task", NAMES)
def test_an_evaluation_in_which_all_is_answered_right_finds_so(files: dict[str, Files], task: str) -> None:
    found, items, style = TASKS[task], items_of(task, files), without_slips(task)
    split = next(iter(found.splits))
    config = EvaluationConfig(
        tasks=[task], files=files, splits=[split], styles=[style], shots=[0, 1], seeds=[0, 1], resamples=20,
        conditions=["standard", "shuffled_labels", "no_query_image"],
        control_splits=[split], control_styles=[style], control_shots=[1],
    )  # fmt: skip
    meant: dict[Document, str] = {}
    for condition in config.conditions:
        for shots in config.shots:
            for seed in config.seeds:
                for query_id in range(items.count(split) or 0):
                    asked = build_prompt(Setting(task, split, style, condition, shots), query_id, seed, files)
                    meant[asked.document] = continuation(found, asked.query, style, asked.target).text

    def generate(documents: Sequence[Document], max_new_tokens: int) -> list[str]:
        return [meant[document] for document in documents]

    def rank(documents: Sequence[Document], candidates: Sequence[Sequence[Text]]) -> list[list[Likelihood]]:
        return [
            [Likelihood(-1.0 if text.text == meant[document] else -9.0, 1) for text in texts]
            for document, texts in zip(documents, candidates, strict=True)
        ]

    cells = evaluate(generate, config, None, rank=rank)["cells"]
    assert {cell["condition"] for cell in cells} == set(config.conditions)
    for cell in cells:
        assert cell["n_failed"] == cell["n_unparsed"] == 0
        if cell["condition"] == "standard":
            assert cell["value"] == 1.0 or cell["metric"] == "cider_d"


def test_the_first_queries_are_a_sample_of_a_sorted_file(tmp_path: Path) -> None:
    """Of 40 images of two classes in order, the first 20 are not all of one."""
    for name in ("a", "b"):
        pictures(tmp_path / "val" / name, [f"{i}.png" for i in range(20)], 0 if name == "a" else 20)
    items = items_of("image_folders", {"image_folders": {"images": str(tmp_path / "val")}})
    first = [items.query("test", i).answer for i in range(20)]
    assert 4 <= first.count("a") <= 16
    assert sorted(items.query("test", i).id for i in range(40)) == sorted(
        f"{name}/{i}.png" for name in "ab" for i in range(20)
    )
