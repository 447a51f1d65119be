from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.grid import Setting, build_prompt
from flamingo_lite.evaluation.rendering import RENDERINGS, one_turn, turns
from flamingo_lite.evaluation.results import prompt_sha

PIXEL = b"\x89PNG\r\n\x1a\n"


def image(number: int) -> Image:
    return Image(PIXEL + bytes([number]), words=str(number))


def direct_prompt(shots: int) -> Document:
    return build_prompt(Setting("operator_induction", "test", "direct", "standard", shots), 3, 0).document


def roles(document: Document) -> list[str | None]:
    return [segment.role for segment in document.texts]


def test_an_interleaved_prompt_is_the_prompt_itself() -> None:
    prompt = direct_prompt(4)
    assert RENDERINGS["interleaved"](prompt) == prompt


def test_turns_put_each_question_and_each_answer_into_a_turn_of_its_own() -> None:
    prompt = Document(
        [image(1), Text(" =", loss=False), Text(" 8", ends_chunk=True), image(2), Text(" =")], name="p"
    )
    shown = turns(prompt)
    assert list(shown) == [
        image(1),
        Text(" =", loss=False, role="user"),
        Text("8", role="assistant"),
        image(2),
        Text(" =", loss=False, role="user"),
    ]
    assert shown.name == "p"


def test_one_turn_holds_all_examples_a_line_each_and_ends_in_the_query() -> None:
    prompt = Document([image(1), Text(" =", loss=False), Text(" 8", ends_chunk=True), image(2), Text(" =")])
    assert list(one_turn(prompt)) == [
        image(1),
        Text(" = 8\n", loss=False, role="user"),
        image(2),
        Text(" =", loss=False, role="user"),
    ]


@pytest.mark.parametrize("rendering", [turns, one_turn])
def test_a_question_of_images_alone_is_still_a_turn_of_the_user(rendering) -> None:
    assert list(rendering(Document([image(1)]))) == [image(1), Text("", loss=False, role="user")]


def test_words_in_place_of_an_image_join_the_question() -> None:
    prompt = Document([image(1), Text(" =", loss=False), Text(" 8", ends_chunk=True), image(2), Text(" =")])
    assert [text.text for text in turns(prompt.text_twin()).texts] == ["[1] =", "8", "[2] ="]


@pytest.mark.parametrize("rendering", [turns, one_turn])
def test_a_prompt_with_roles_is_refused(rendering) -> None:
    with pytest.raises(FlamingoError, match="role 'user' already"):
        rendering(Document([Text("hello", role="user")]))


@pytest.mark.parametrize("shots", [0, 1, 4, 8])
def test_a_task_s_prompt_ends_with_the_user_and_alternates(shots: int) -> None:
    assert roles(turns(direct_prompt(shots))) == ["user", "assistant"] * shots + ["user"]
    assert set(roles(one_turn(direct_prompt(shots)))) == {"user"}


texts = st.builds(Text, st.text("ab =\n", max_size=4), loss=st.booleans(), ends_chunk=st.booleans())
documents = st.lists(st.one_of(texts, st.integers(0, 5).map(image)), min_size=1, max_size=12).map(Document)


@settings(deadline=None)
@given(documents, st.sampled_from(sorted(RENDERINGS)))
def test_no_rendering_loses_or_moves_an_image_or_a_word(document: Document, name: str) -> None:
    shown = RENDERINGS[name](document)
    assert shown.images == document.images

    def words(of: Document) -> str:
        return "".join("".join(s.text.split()) if isinstance(s, Text) else f"<{s.id}>" for s in of)

    assert words(shown) == words(document)


@settings(deadline=None)
@given(documents)
def test_every_text_of_a_conversation_has_a_role_and_only_the_assistant_s_are_trained_on(
    document: Document,
) -> None:
    for rendering in (turns, one_turn):
        assert all(text.role in ("user", "assistant") for text in rendering(document).texts)
        assert all(text.loss == (text.role == "assistant") for text in rendering(document).texts)


@pytest.mark.parametrize("name", ["turns", "one_turn"])
def test_an_evaluation_shows_prompts_in_the_way_it_is_told_and_knows_them_by_the_same_hash(name: str) -> None:
    plain = Setting("operator_induction", "test", "direct", "standard", 2)
    told = replace(plain, rendering=name)
    one, other = build_prompt(plain, 3, 0), build_prompt(told, 3, 0)
    assert prompt_sha(one.document) == prompt_sha(other.document)
    assert one.shown == one.document
    assert other.shown == RENDERINGS[name](one.document)


def test_a_candidate_continues_a_conversation_as_the_assistant() -> None:
    prompt = build_prompt(Setting("existence", "test", "ranked", "standard", 1, rendering="turns"), 0, 0)
    assert [(text.text, text.role) for text in prompt.shown_candidates] == [
        ("yes", "assistant"),
        ("no", "assistant"),
    ]
