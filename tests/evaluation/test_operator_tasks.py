from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from flamingo_lite.data.synthetic import operators
from flamingo_lite.document import Document, Image, Text
from flamingo_lite.evaluation.demonstrations import Example
from flamingo_lite.evaluation.grid import Setting, build_prompt
from flamingo_lite.evaluation.tasks import TASKS, items_of
from flamingo_lite.evaluation.tasks import operators as tasks
from flamingo_lite.evaluation.tasks.task import other_query

NAMES = ("operator_induction", "operator_induction_interleaved")
QUERIES = range(20)


def shown(name: str, split: str, query_id: int, seed: int = 0, shots: int = 8) -> tuple[Example, ...]:
    return build_prompt(Setting(name, split, "direct", "standard", shots), query_id, seed).demonstrations


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split", tasks.SPLITS)
def test_queries_come_from_the_pairs_of_their_split_and_are_answered_by_one_of_its_rules(
    name: str, split: str
) -> None:
    allowed = operators.pairs(held_out=split == "held_out_pairs")
    rules = ["larger"] if split == "held_out_rule" else operators.TRAINED_RULES
    for query_id in QUERIES:
        query = items_of(name).query(split, query_id)
        pair = tasks.operands(query)
        assert pair in allowed
        assert " ? ".join(image.words for image in query.images) == query.facts["expression"]
        assert int(query.answer) in {operators.RULES[rule](*pair) for rule in rules}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split", tasks.SPLITS)
def test_demonstrations_obey_one_rule_on_trained_pairs_and_never_show_the_query(
    name: str, split: str
) -> None:
    for query_id in QUERIES:
        query = items_of(name).query(split, query_id)
        examples = shown(name, split, query_id)
        assert all(tasks.operands(d) in operators.pairs(held_out=False) for d in examples)
        assert any(
            all(int(e.answer) == rule(*tasks.operands(e)) for e in (*examples, query))
            for rule in operators.RULES.values()
        )
        assert all(0 <= int(d.answer) <= 9 for d in examples)
        assert not set(query.images).intersection(image for d in examples for image in d.images)
        assert len({d.images for d in examples}) == 8


def test_everything_is_a_function_of_its_key_and_not_of_what_was_asked_before() -> None:
    before = [items_of(NAMES[0]).query("test", i).images for i in range(5)]
    examples = [d.images for d in shown(NAMES[0], "test", 3, 1)]
    for memory in (tasks._query, tasks._support_together, tasks._support):
        memory.cache_clear()
    assert [d.images for d in shown(NAMES[0], "test", 3, 1)] == examples
    assert [items_of(NAMES[0]).query("test", i).images for i in reversed(range(5))] == before[::-1]


def test_the_answers_of_demonstrations_do_not_betray_their_rule() -> None:
    """An answer that one rule cannot give would tell the rules apart without an image."""
    generator = random.Random(0)
    drawn = {
        rule: Counter(
            example.answer
            for support in [tasks._support(tasks.Form("", no_images, no_images), "test", rule, 1)]
            for example in itertools.islice(support.draws(generator), 4000)
        )
        for rule in operators.TRAINED_RULES
    }
    supports = {frozenset(counts) for counts in drawn.values()}
    assert len(supports) == 1, (
        f"answers that each rule can give: { {r: sorted(c) for r, c in drawn.items()} }"
    )
    expected = 4000 / len(supports.pop())
    for counts in drawn.values():
        # Five standard deviations of a binomial count.
        assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())


def no_images(*key: object) -> tuple[Image, ...]:
    return ()


@pytest.mark.parametrize("name", NAMES)
def test_the_other_query_shows_other_operands(name: str) -> None:
    for query_id in QUERIES:
        other = other_query(items_of(name), name, "held_out_pairs", query_id, 0)
        assert tasks.operands(other) != tasks.operands(items_of(name).query("held_out_pairs", query_id))


@pytest.mark.parametrize("style", ["direct", "spelled"])
def test_a_prompt_is_what_training_writes_up_to_the_answer(style: str) -> None:
    examples, query = shown(NAMES[0], "test", 0, 0, 3), items_of(NAMES[0]).query("test", 0)
    written: list[Image | Text] = []
    for example in (*examples, query):
        a, b = tasks.operands(example)
        written += operators.item(example.images[0], a, b, int(example.answer), tasks._style(style))
    prompt = build_prompt(Setting(NAMES[0], "test", style, "standard", 3), 0, 0)
    assert prompt.document == Document(written[:-1])


@pytest.mark.parametrize("style", ["direct", "spelled"])
def test_an_interleaved_prompt_is_what_training_writes_up_to_the_answer(style: str) -> None:
    name = NAMES[1]
    examples, query = shown(name, "test", 0, 0, 3), items_of(name).query("test", 0)
    written: list[Image | Text] = []
    for example in (*examples, query):
        images = iter(example.images)
        a, b = tasks.operands(example)
        written += operators.apart(
            a,
            b,
            int(example.answer),
            tasks._style(style),
            lambda p, g, images=images: next(images),
            random.Random(0),
        )
    prompt = build_prompt(Setting(name, "test", style, "standard", 3), 0, 0)
    assert prompt.document == Document(written[:-1])


def test_a_spelled_answer_has_read_the_image_if_it_names_the_operands() -> None:
    query, style = items_of(NAMES[0]).query("test", 0), TASKS[NAMES[0]].styles["spelled"]
    assert style.has_read is not None
    assert style.has_read(f" {query.facts['expression']} = 99", query) is True
    assert style.has_read(" 99 ? 1 = 99", query) is False
    assert style.has_read("", query) is False
    assert TASKS[NAMES[0]].styles["direct"].has_read is None
