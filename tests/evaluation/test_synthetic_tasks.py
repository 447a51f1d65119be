"""Every synthetic task, read by an independent reader: from what its images show in words, by the task's rule."""

from __future__ import annotations

import pathlib
import re
from collections import Counter
from collections.abc import Callable

import pytest

from flamingo_lite.config import load_config
from flamingo_lite.data.synthetic import canvas, operators, reading
from flamingo_lite.data.synthetic.scenes import COLOURS, is_held_out
from flamingo_lite.document import Document, Image
from flamingo_lite.evaluation.conditions import CONDITIONS
from flamingo_lite.evaluation.demonstrations import Example
from flamingo_lite.evaluation.grid import EvaluationConfig, Setting, build_prompt, prompts
from flamingo_lite.evaluation.runner import evaluate
from flamingo_lite.evaluation.tasks import TASKS, items_of
from flamingo_lite.evaluation.tasks.matching import relation
from flamingo_lite.evaluation.tasks.task import other_query

SYNTHETIC = [name for name, task in TASKS.items() if not task.files]
RULES: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "x": lambda a, b: a * b,
    "larger": max,
}
Example_ = tuple[tuple[str, ...], str, str]
"""What an example shows in words, what is asked in the text, and its answer."""


def words_of(example: Example) -> Example_:
    assert all(image.words is not None for image in example.images)
    return tuple(image.words or "" for image in example.images), example.question, example.answer


def by_rule(shown: list[Example_], query: Example_) -> set[str]:
    operands = [(tuple(map(int, re.findall(r"\d", " ".join(words)))), answer) for words, _, answer in shown]
    fitting = [
        rule for rule in RULES.values() if all(str(rule(a, b)) == answer for (a, b), answer in operands)
    ]
    a, b = map(int, re.findall(r"\d", " ".join(query[0])))
    return {str(rule(a, b)) for rule in fitting}


def by_count(shown: list[Example_], query: Example_) -> set[str]:
    attribute = query[1].split(": ")[1]
    return {str(query[0][0].split().count(attribute) + query[0][0].count(f"{attribute},"))}


def by_name(shown: list[Example_], query: Example_) -> set[str]:
    """A kind is what all that share a name have in common, and others do not."""
    return {
        answer
        for words, _, answer in shown
        for attribute in (0, 1)
        if words[0].split()[attribute] == query[0][0].split()[attribute]
        and all(
            (other[0].split()[attribute] == words[0].split()[attribute]) == (name == answer)
            for other, _, name in shown
        )
    }


def by_relation(shown: list[Example_], query: Example_) -> set[str]:
    def same(words: tuple[str, ...], attribute: int) -> str:
        first, second = (word.split()[attribute] for word in words)
        return "yes" if first == second else "no"

    fitting = [a for a in (0, 1) if all(same(words, a) == answer for words, _, answer in shown)]
    return {same(query[0], attribute) for attribute in fitting}


def by_existence(shown: list[Example_], query: Example_) -> set[str]:
    thing = query[1].removeprefix("is there a ").removesuffix("?")
    return {"yes" if thing in query[0][0].split(", ") else "no"}


def as_shown(shown: list[Example_], query: Example_) -> set[str]:
    return {query[0][0]}


READERS: dict[str, Callable[[list[Example_], Example_], set[str]]] = {
    "operator_induction": by_rule,
    "operator_induction_interleaved": by_rule,
    "count_induction": by_count,
    "open_naming": by_name,
    "matching": by_relation,
    "reading": as_shown,
    "captioning": as_shown,
    "existence": by_existence,
}


def test_every_synthetic_task_has_a_reader() -> None:
    assert set(READERS) == set(SYNTHETIC)


@pytest.mark.parametrize("name", SYNTHETIC)
def test_an_independent_reader_of_the_images_gives_every_answer(name: str) -> None:
    reader = READERS[name]
    decided = 0
    for split in TASKS[name].splits:
        for query_id in range(25):
            prompt = build_prompt(Setting(name, split, "direct", "standard", 8), query_id, 0)
            shown = [words_of(example) for example in prompt.demonstrations]
            answers = reader(shown, words_of(prompt.query))
            assert prompt.target in answers
            decided += len(answers) == 1
            for i, example in enumerate(shown):
                assert example[2] in reader(shown, example), (i, example)
    assert decided > 0.8 * 25 * len(TASKS[name].splits)


@pytest.mark.parametrize("name", SYNTHETIC)
def test_a_control_lowers_the_reader_and_words_for_images_do_not(name: str) -> None:
    config = EvaluationConfig(
        tasks=[name], splits=["test"], styles=["direct"], shots=[8], seeds=[0], queries=40, resamples=10
    )
    known = {
        key: prompt.target
        for condition in ("standard", "text_twin")
        for prompt in prompts(Setting(name, "test", "direct", condition, 8), config)
        for key in [seen(prompt.document)]
    }
    style = TASKS[name].styles["direct"]
    results = evaluate(
        lambda documents, max_new_tokens: [f" {known.get(seen(d), 'nothing to see')}\n" for d in documents],
        config,
        None,
    )
    values = {cell["condition"]: cell["value"] for cell in results["cells"]}
    best = values["standard"]
    # A caption that equals its one reference scores 10 but for n-grams that it is too short to have.
    assert best == 1.0 if style.together is None else 8 < best <= 10
    assert values["text_twin"] == best
    lowered = ("blank_demonstrations", "mismatched_images", "blank_images", "no_query_image")
    assert all(values[condition] < best for condition in lowered)


def seen(document: Document) -> str:
    """The document in words, in which a twin and the pictures read alike."""
    return "".join(f"[{s.words}]" if isinstance(s, Image) else s.text for s in document)


CLOSED = {"count_induction": 6, "matching": 2, "existence": 2, "open_naming": 4}


@pytest.mark.parametrize("name", CLOSED)
def test_every_answer_is_as_frequent_as_any_other(name: str) -> None:
    items = items_of(name)
    targets = Counter(
        query.choices.index(query.answer) if name == "open_naming" else query.answer
        for query in (items.query("test", i) for i in range(240))
    )
    expected = 240 / CLOSED[name]
    assert len(targets) == CLOSED[name]
    # Drawn in groups that hold each answer once, but for the names, which are drawn freely.
    slack = 5 * expected**0.5 if name == "open_naming" else 0
    assert all(abs(count - expected) <= slack for count in targets.values())


@pytest.mark.parametrize("name", CLOSED)
def test_answers_alone_allow_no_more_than_chance(name: str) -> None:
    """The best of all guesses, of 600 prompts; five standard deviations of the number of right ones are allowed."""
    config = EvaluationConfig(
        tasks=[name], splits=["test"], styles=["direct"], shots=[4], seeds=[0, 1], queries=300, resamples=10,
        conditions=["standard"],
    )  # fmt: skip
    (cell,) = evaluate(lambda documents, n: [""] * len(documents), config, None)["cells"]
    chance = 1 / CLOSED[name]
    assert cell["random_baseline"] == pytest.approx(chance, abs=1e-6)
    assert cell["answers_alone"] <= chance + 5 * (chance * (1 - chance) / 300) ** 0.5


def test_matching_agrees_in_what_does_not_count_half_of_the_time() -> None:
    for wanted in ("yes", "no"):
        agreements = []
        for query_id in range(400):
            query = items_of("matching").query("test", query_id)
            place = 1 if relation("test", query_id) == "colour" else 0
            first, second = ((image.words or "").split()[place] for image in query.images)
            if query.answer == wanted:
                agreements.append(first == second)
        assert abs(sum(agreements) - 100) < 5 * 50**0.5


def test_absent_things_are_made_of_parts_that_are_there_about_half_of_the_time() -> None:
    near = 0
    for query_id in range(200):
        query = items_of("existence").query("test", query_id)
        words = (query.images[0].words or "").replace(",", "").split()
        colour, shape = query.question.removesuffix("?").split()[-2:]
        near += query.answer == "no" and colour in words and shape in words
    assert 15 < near < 85


@pytest.mark.parametrize("name", ["count_induction", "existence", "captioning"])
def test_held_out_scenes_are_asked_about_and_never_demonstrated(name: str) -> None:
    def things(example: Example) -> list[tuple[str, str]]:
        pairs = [thing.split() for thing in (example.images[0].words or "").split(", ")]
        return [(colour, shape) for colour, shape in pairs]

    for query_id in range(10):
        prompt = build_prompt(Setting(name, "held_out_scenes", "direct", "standard", 4), query_id, 0)
        assert is_held_out(things(prompt.query))
        assert not any(is_held_out(things(example)) for example in prompt.demonstrations)
        assert all(colour in COLOURS for colour, _ in things(prompt.query))


def test_reading_shows_held_out_pairs_in_their_split_alone() -> None:
    items = items_of("reading")
    for query_id in range(30):
        for split in ("test", "handwritten"):
            assert not reading.shows_held_out_pair(items.query(split, query_id).answer)
        answer = items.query("held_out_pairs", query_id).answer
        a, b = map(int, answer.split(" ? "))
        assert (a, b) in operators.pairs(held_out=True)


def test_an_image_has_the_size_of_the_family(name: str = "matching") -> None:
    image = items_of(name).query("test", 0).images[0]
    assert image.pil().size == (canvas.WIDTH, canvas.HEIGHT)


@pytest.mark.parametrize("name", SYNTHETIC)
def test_the_other_query_shows_something_else_in_as_many_images(name: str) -> None:
    items = items_of(name)
    for query_id in range(10):
        query, other = items.query("test", query_id), other_query(items, name, "test", query_id, 1)
        assert len(other.images) == len(query.images)
        assert [i.words for i in other.images] != [i.words for i in query.images]


def test_the_cards_name_every_task_with_its_splits_and_styles_and_every_preset_asks_them() -> None:
    page = (pathlib.Path(__file__).parents[2] / "docs" / "tasks.md").read_text()
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    for name in SYNTHETIC:
        assert name in rows
        assert name.endswith("interleaved") or all(f"`{split}`" in page for split in TASKS[name].splits)
        assert all(f"`{style}`" in page for style in TASKS[name].styles)
    assert all(f"`{condition}`" in page for condition in CONDITIONS if condition != "standard")
    assert sorted(load_config(["eval=synthetic"]).eval.tasks) == sorted(SYNTHETIC)
