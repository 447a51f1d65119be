from __future__ import annotations

import random
from collections import Counter

import pytest

from flamingo_lite.data.synthetic import operators
from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation import tasks
from flamingo_lite.evaluation.tasks import OperatorInduction

TASK = OperatorInduction()
QUERIES = range(40)


def operands(expression: str) -> tuple[int, int]:
    a, b = map(int, expression.split(" ? "))
    return a, b


@pytest.mark.parametrize("split", TASK.splits)
def test_queries_come_from_the_pairs_of_their_split_and_are_answered_by_one_of_its_rules(split: str) -> None:
    allowed = operators.pairs(held_out=split == "held_out_pairs")
    rules = ["larger"] if split == "held_out_rule" else operators.TRAINED_RULES
    for query_id in QUERIES:
        query = TASK.query(split, query_id)
        pair = operands(query.expression)
        assert pair in allowed
        assert query.image.words == query.expression
        assert int(query.answer) in {operators.RULES[rule](*pair) for rule in rules}


@pytest.mark.parametrize("split", TASK.splits)
def test_demonstrations_obey_one_rule_on_trained_pairs_and_never_show_the_query(split: str) -> None:
    for query_id in QUERIES:
        query = TASK.query(split, query_id)
        shown = TASK.demonstrations(split, query_id, 0, 8)
        assert all(operands(d.expression) in operators.pairs(held_out=False) for d in shown)
        assert any(
            all(int(e.answer) == rule(*operands(e.expression)) for e in (*shown, query))
            for rule in operators.RULES.values()
        )
        assert all(0 <= int(d.answer) <= 9 for d in shown)
        assert len({query.image.id, *(d.image.id for d in shown)}) == 9


def test_everything_is_a_function_of_its_key_and_not_of_what_was_asked_before() -> None:
    before = [TASK.query("test", i).image.id for i in range(5)]
    shown = [d.image.id for d in TASK.demonstrations("test", 3, 1, 8)]
    for memory in (tasks._query, tasks._support_image, tasks._demonstrations):
        memory.cache_clear()
    assert [d.image.id for d in OperatorInduction().demonstrations("test", 3, 1, 8)] == shown
    assert [OperatorInduction().query("test", i).image.id for i in reversed(range(5))] == before[::-1]


def test_demonstrations_are_nested_and_differ_between_seeds_queries_and_splits() -> None:
    def ids(split: str, query_id: int, seed: int, shots: int = 8) -> tuple[str, ...]:
        return tuple(d.id.partition("/")[2] for d in TASK.demonstrations(split, query_id, seed, shots))

    assert all(ids("test", 3, 1, shots) == ids("test", 3, 1)[:shots] for shots in range(9))
    drawn = [ids("test", 3, 1), ids("test", 3, 2), ids("test", 4, 1), ids("handwritten", 3, 1)]
    assert len(set(drawn)) == 4


def test_the_answers_of_demonstrations_do_not_betray_their_rule() -> None:
    """An answer that one rule cannot give would tell the rules apart without an image."""
    generator = random.Random(0)
    among = operators.pairs(held_out=False)
    drawn = {
        rule: Counter(
            operators.RULES[rule](*operators.draw_operands(generator, rule, among)) for _ in range(4000)
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


def test_the_other_query_shows_other_operands() -> None:
    for query_id in QUERIES:
        other = TASK.other_query("held_out_pairs", query_id, 0)
        assert other.expression != TASK.query("held_out_pairs", query_id).expression


@pytest.mark.parametrize("style", ["direct", "spelled"])
def test_a_prompt_is_what_training_writes_up_to_the_answer(style: str) -> None:
    shown, query = TASK.demonstrations("test", 0, 0, 3), TASK.query("test", 0)
    written: list[Image | Text] = []
    for example in shown:
        a, b = operands(example.expression)
        written += operators.item(example.image, a, b, int(example.answer), tasks._style(style))
    written += operators.prompt(query.image, tasks._style(style))
    assert TASK.prompt(shown, query, style) == Document(written)


def test_a_spelled_answer_has_read_the_image_if_it_names_the_operands() -> None:
    query = TASK.query("test", 0)
    assert TASK.has_read(query, "spelled", f" {query.expression} = 99") is True
    assert TASK.has_read(query, "spelled", " 99 ? 1 = 99") is False
    assert TASK.has_read(query, "spelled", "") is False
    assert TASK.has_read(query, "direct", " 3") is None


def test_a_support_smaller_than_the_shots_says_so_in_one_line() -> None:
    with pytest.raises(FlamingoError, match="operator_induction, split test: the support gave") as caught:
        OperatorInduction(renderings=1).demonstrations("test", 0, 0, 80)
    assert "\n" not in str(caught.value)
