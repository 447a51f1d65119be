"""Whatever is said, under whatever template and kind of tokenizer: trained on are the answers, each with its stop."""

from dataclasses import replace

import PIL.Image
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import SampleError
from flamingo_lite.text.conversations import CONVERSATIONS
from flamingo_lite.text.template import Template
from flamingo_lite.text.tokenizer import encode
from tests.text.reference_chat_templates import REFERENCES
from tests.text.tokenizer_kinds import KINDS, decoded, tokenizer_of

PICTURES = [Image(PIL.Image.new("RGB", (2, 2), (i, 0, 0))) for i in range(3)]
LABELLED = replace(CONVERSATIONS["chatml"], image_label="Picture {number}: ")
TEMPLATES = {**CONVERSATIONS, "chatml with labels": LABELLED}
NAMES = [name for name in TEMPLATES if name != "tokenizer"]

# "▁" is how SentencePiece writes a blank, and comes back as one; a lone surrogate is no text.
words = st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="▁"), max_size=12
) | st.sampled_from(
    [
        " a cat",
        "line\nline\n",
        "</s>",
        "<|im_end|> or <|eot_id|>",
        "  two  blanks ",
        "###",
        "日本 é 👍🏽",
        "\tnaïve",
        'f"{begin} to {end}"',
    ]
)
spoken = words.filter(lambda text: text.strip() != "" and "<image>" not in text)
pictures = st.lists(st.sampled_from(PICTURES), max_size=2)
inputs = st.just([]) | spoken.map(lambda text: [Text("\n" + text, False, "user")])
questions = st.builds(
    lambda before, text, own, after: [*before, Text(text, False, "user"), *own, *after],
    pictures, spoken, inputs, pictures,
)  # fmt: skip
answers = st.builds(
    lambda text, loss: [Text(text, loss, "assistant", ends_chunk=True)], spoken, st.booleans()
) | st.builds(
    lambda first, image, second: [
        Text(first, role="assistant"),
        image,
        Text(second, role="assistant", ends_chunk=True),
    ],
    spoken,
    st.sampled_from(PICTURES),
    spoken,
)
systems = st.just([]) | spoken.map(lambda text: [Text(text, False, "system")])
conversations = st.builds(
    lambda system, turns: Document(
        [*system, *(segment for pair in turns for part in pair for segment in part)]
    ),
    systems,
    st.lists(st.tuples(questions, answers), min_size=1, max_size=3),
)


def expected(document: Document, name: str, kind: str) -> str:
    """The answers that are trained on, as the template surrounds them, and as the tokenizer begins words behind a token."""
    template = TEMPLATES[name]
    said, is_first, is_behind_token = "", True, name == "plain"
    for segment in document:
        if isinstance(segment, Image):
            is_behind_token = template.image_joint == ""
        elif segment.role == "assistant":
            text, stop = segment.text, template.stop.replace("{end}", "</s>") if segment.ends_chunk else ""
            if template.strips:
                text = text.lstrip() if is_first else text
                text = text.rstrip() if segment.ends_chunk else text
            gap = template.gap if is_first else dummy_blank(kind, text) if is_behind_token else ""
            gap = dummy_blank(kind, text) if name == "plain" and is_behind_token else gap
            said += gap + text + stop if segment.loss else ""
            is_first, is_behind_token = segment.ends_chunk, False
    return said


def dummy_blank(kind: str, text: str) -> str:
    """What SentencePiece writes before words that stand behind a token."""
    return " " if kind == "bpe" or (kind == "unigram" and not text.startswith(" ")) else ""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12, deadline=None)
@given(document=conversations)
def test_the_ids_that_are_trained_on_are_exactly_the_answers(
    name: str, kind: str, document: Document
) -> None:
    tokenizer = tokenizer_of(kind)
    encoded = encode(document, tokenizer, Template(conversation=TEMPLATES[name]), True)
    trained = [label for label in encoded.labels if label != -100]
    assert decoded(tokenizer, trained) == expected(document, name, kind)
    assert all(label in (-100, token) for token, label in zip(encoded.input_ids, encoded.labels, strict=True))
    assert encoded.images == document.images


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=4, deadline=None)
@given(document=conversations, loss=st.booleans())
def test_a_prompt_is_the_beginning_of_what_is_trained_on(
    name: str, kind: str, document: Document, loss: bool
) -> None:
    tokenizer, template = tokenizer_of(kind), Template(conversation=TEMPLATES[name])
    prompt = [s for s in document if not (isinstance(s, Text) and s.role == "assistant")]
    short = encode(Document(prompt), tokenizer, template)
    answer = Text("It is.", loss, "assistant")
    whole = encode(Document([*prompt, answer]), tokenizer, template, True)
    assert whole.input_ids[: len(short)] == short.input_ids
    assert decoded(tokenizer, whole.input_ids[len(short) :]).lstrip(" ").startswith("It is.")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", REFERENCES)
@settings(max_examples=12, deadline=None)
@given(document=conversations)
def test_a_tokenizers_own_template_trains_on_what_ours_does(name: str, kind: str, document: Document) -> None:
    tokenizer = tokenizer_of(kind)
    # Llama-2's strips system and question together: of the question the blanks before it stay.
    first = next(text for text in document.texts if text.role == "user")
    assume(name != "llama2" or document.texts[0].role == "user" or first.text == first.text.lstrip())
    # The words of a system of its own, no tokenizer's template has.
    ours = encode(document, tokenizer, Template(conversation=replace(CONVERSATIONS[name], system="")), True)
    tokenizer.chat_template = REFERENCES[name]
    try:
        own = encode(document, tokenizer, Template(conversation=CONVERSATIONS["tokenizer"]), True)
    except SampleError as error:
        # Words that are its tokens, or a rendering that would not go on from what a prompt ends with.
        assert error.reason in ("marks", "turns")
        return
    finally:
        tokenizer.chat_template = None
    assert (own.input_ids, own.labels, own.images) == (ours.input_ids, ours.labels, ours.images)
