"""Self-Instruct's filters and forms, one by one, and ROUGE-L against its definition."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_lite.data.instruct.rouge import common_length, rouge_l, tokens
from flamingo_lite.data.instruct.self_instruct import seed_tasks
from flamingo_lite.data.instruct.tasks import (
    MAX_INSTANCES,
    MAX_SIMILARITY,
    Instance,
    check_instruction,
    listed,
    read_instances,
    read_list,
    sift,
    written,
)
from flamingo_lite.errors import SampleError

letters = st.lists(st.sampled_from("abcd"), max_size=9)


def longest_common(first: list[str], second: list[str]) -> int:
    """The definition, by recursion."""
    if not first or not second:
        return 0
    if first[-1] == second[-1]:
        return 1 + longest_common(first[:-1], second[:-1])
    return max(longest_common(first[:-1], second), longest_common(first, second[:-1]))


@settings(deadline=None, max_examples=60)
@given(letters, letters)
def test_the_longest_common_subsequence_is_found(first: list[str], second: list[str]) -> None:
    assert common_length(first, second) == longest_common(first, second)


@pytest.mark.parametrize(
    ("first", "second", "expected"),  # what rouge_score 0.1.2 says, without a stemmer
    [
        ("Write a poem about the sea.", "Write a short poem about a lake and the sea", 0.75),
        ("Sort the 3 numbers: 10, 7, 22!", "sort these numbers", 0.4),
        ("Name it.", "List all", 0.0),
        ("Don't translate the e-mail", "Translate the e-mail, don't wait", 0.615385),
    ],
)
def test_rouge_l_is_that_of_the_reference_package(first: str, second: str, expected: float) -> None:
    assert rouge_l(tokens(first), tokens(second)) == pytest.approx(expected, abs=1e-6)


def test_the_seed_tasks_would_all_be_kept_and_both_sorts_are_among_them() -> None:
    kept: list[list[str]] = []
    for task in seed_tasks():
        kept.append(check_instruction(task.instruction, kept))
        assert task.instances and all(isinstance(each, Instance) for each in sift(task.instances))
        assert read_instances(written(task.instances, task.labels), task.labels) == list(task.instances)
    assert len(kept) >= 40 and sum(task.labels for task in seed_tasks()) >= 12


KEPT = [tokens("Write a short poem about the sea at night.")]


@pytest.mark.parametrize(
    ("instruction", "reason"),
    [
        ("Write a poem.", "short"),
        ("word " * 151, "long"),
        ("Describe what the picture shows in words.", "keyword"),
        ("Summarize the attached report in two sentences.", "keyword"),
        ("- Write down two reasons for it.", "start"),
        ("Écris deux phrases sur la pluie.", "start"),
        ("Write a short poem about the sea at dawn.", "similar"),
    ],
)
def test_an_instruction_that_is_left_out_has_a_reason(instruction: str, reason: str) -> None:
    with pytest.raises(SampleError) as error:
        check_instruction(instruction, KEPT)
    assert error.value.reason == reason


def test_an_instruction_of_four_words_or_of_150_that_is_like_none_is_kept() -> None:
    assert check_instruction("Name two old trees.", KEPT) == ["name", "two", "old", "trees"]
    assert len(check_instruction("word " * 150, KEPT)) == 150
    assert rouge_l(tokens("Name two old trees."), KEPT[0]) < MAX_SIMILARITY


def test_a_keyword_within_another_word_is_none() -> None:
    assert check_instruction("Explain what a filename or a drawback is.", KEPT)


def test_a_list_is_read_with_what_was_cut_apart() -> None:
    text = f"{listed(['a', 'b'])}\nTask 3: one\n  more line\nTask 4. four"
    assert read_list(text, is_cut=False) == (["a", "b", "one more line", "four"], None)
    assert read_list(text, is_cut=True) == (["a", "b", "one more line"], "four")
    with pytest.raises(SampleError, match="no line that begins with 'Task N:'"):
        read_list("1. one\n2. two", is_cut=False)


def test_instances_are_read_in_either_order() -> None:
    given = [Instance("What is\nthis?", "A test."), Instance("", "yes")]
    for labels in (True, False):
        assert read_instances(written(given, labels), labels) == given
    assert read_instances("Input: none.\nOutput: x", labels=False) == [Instance("", "x")]


@pytest.mark.parametrize("text", ["", "Output: x", "Input: a\nOutput: b\n===\nnothing", "Label: a\nInput: b"])
def test_instances_in_another_form_are_refused(text: str) -> None:
    with pytest.raises(SampleError) as error:
        read_instances(text, labels=False)
    assert error.value.reason == "format"


@pytest.mark.parametrize(
    ("instances", "reasons"),
    [
        ([Instance("a", "b"), Instance("a", "c"), Instance("d", "e")], ["contradiction", "contradiction", ""]),
        ([Instance("a", "a")], ["echo"]),
        ([Instance("a", "The steps are:")], ["colon"]),
        ([Instance("Here it is:", "b")], ["colon"]),
        ([Instance("a", "")], ["empty"]),
        ([Instance("a", "b"), Instance("a", "b")], ["", "repeated"]),
        ([Instance(str(i), "b") for i in range(7)], ["", "", "", "", "", "extra", "extra"]),
        ([Instance("x", "x"), *(Instance(str(i), "b") for i in range(5))], ["echo", "", "", "", "", ""]),
    ],
)  # fmt: skip
def test_an_instance_that_is_left_out_has_a_reason(instances: list[Instance], reasons: list[str]) -> None:
    sifted = sift(instances)
    assert [each.reason if isinstance(each, SampleError) else "" for each in sifted] == reasons
    assert sum(reason == "" for reason in reasons) <= MAX_INSTANCES
