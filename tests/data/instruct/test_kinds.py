"""What a teacher is asked for LLaVA's kinds, and how its answer becomes a conversation."""

import io

import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_lite.data.instruct.described import Box, Described, context
from flamingo_lite.data.instruct.kinds import KINDS, document, messages, prompt, read_pairs
from flamingo_lite.document import Image
from flamingo_lite.errors import SampleError
from flamingo_lite.teacher import Answer

BUFFER = io.BytesIO()
PIL.Image.new("RGB", (8, 8), "red").save(BUFFER, "PNG")
DESCRIBED = Described(
    "a", Image(BUFFER.getvalue()), ("a dog", "a brown dog runs"), (Box("dog", (0.1234567, 0, 2 / 3, 1)),)
)
PAIR = "Question:\nWhat runs?\n===\nAnswer:\nA brown dog."


def reason_of(kind: str, answer: Answer) -> str:
    with pytest.raises(SampleError) as error:
        document(kind, DESCRIBED, answer, "teacher")
    return error.value.reason


def test_boxes_are_written_in_shares_of_the_image_with_three_decimals() -> None:
    expected = "Captions:\n- a dog\n- a brown dog runs\n\nBoxes:\ndog: [0.123, 0.000, 0.667, 1.000]"
    assert context(DESCRIBED.captions, DESCRIBED.boxes) == expected


@pytest.mark.parametrize(("kind", "examples"), [("conversation", 2), ("detail", 3), ("reasoning", 3)])
def test_each_kind_shows_as_many_examples_as_was_published(kind: str, examples: int) -> None:
    roles = [message.role for message in messages(kind, DESCRIBED)]
    assert roles == ["system", *["user", "assistant"] * examples, "user"]


@pytest.mark.parametrize("kind", KINDS)
def test_only_a_conversation_is_asked_for_without_boxes(kind: str) -> None:
    asked = messages(kind, DESCRIBED)
    assert ("Boxes:" in asked[-1].text) == (kind != "conversation") == ("Boxes:" in asked[1].text)


@pytest.mark.parametrize("kind", KINDS)
def test_the_packaged_examples_are_answers_that_would_be_kept(kind: str) -> None:
    for _, answer in prompt(kind).examples:
        made = document(kind, DESCRIBED, Answer(answer), "teacher")
        assert len(made.texts) >= 2 and made.meta["kind"] == kind and len(made.images) == 1


def test_a_description_answers_a_request_that_depends_on_the_image_alone() -> None:
    made = document("detail", DESCRIBED, Answer("A brown dog runs."), "teacher")
    assert made.texts[0].text in prompt("detail").questions and made.texts[1].text == "A brown dog runs."
    assert document("detail", DESCRIBED, Answer("Other."), "teacher").texts[0] == made.texts[0]


words = st.text("aB: \n\u00e4.?-", min_size=1, max_size=20).map(str.strip).filter(bool)
plain = words.filter(
    lambda text: all(line.strip() not in ("Question:", "Answer:") for line in text.splitlines())
)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(plain, plain), min_size=1, max_size=4), st.sampled_from(["===", " === ", "====="]))
def test_pairs_come_back_as_they_were_written(pairs: list[tuple[str, str]], line: str) -> None:
    text = f"\n{line}\n".join(f"Question:\n{q}\n{line}\nAnswer:\n{a}" for q, a in pairs)
    assert read_pairs(f"\n{text}\n") == pairs


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Sure! Here is a conversation.",
        "Question:\nWhat runs?",
        "Question: What runs? Answer: A dog.",
        "Question:\nWhat runs?\nAnswer:\nA dog.",
        "Question:\nWhat runs?\n===\nAnswer:\n",
        "Answer:\nA dog.\n===\nQuestion:\nWhat runs?",
        f"{PAIR}\n===\nQuestion:\nWhat else?",
        "Question:\nWhat runs?\nAnswer:\nA dog.\n===\nAnswer:\nA dog.",
    ],
)
def test_any_other_form_is_refused(text: str) -> None:
    assert reason_of("conversation", Answer(text)) == "format"


@pytest.mark.parametrize(
    ("kind", "answer", "reason"),
    [
        ("conversation", Answer(PAIR, is_cut=True), "cut"),
        ("reasoning", Answer(f"{PAIR}\n===\n{PAIR}"), "format"),
        ("detail", Answer(" \n"), "format"),
        ("detail", Answer("As the captions say, a dog runs."), "source"),
        ("detail", Answer("The dog is at the coordinates given."), "source"),
        ("conversation", Answer(PAIR.replace("dog", "dog in a bounding box")), "source"),
        ("detail", Answer("<image> a dog"), "marks"),
        ("detail", Answer("a dog<|endofchunk|>"), "marks"),
    ],
)
def test_an_answer_that_cannot_be_trained_on_has_a_reason(kind: str, answer: Answer, reason: str) -> None:
    assert reason_of(kind, answer) == reason
