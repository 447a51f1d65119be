"""Documents to ids, labels and media index, for any tokenizer and any layout."""

import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from flamingo_lite.document import IMAGE_TOKEN, Document, Image, Text
from flamingo_lite.errors import FlamingoError
from flamingo_lite.text.template import Template
from flamingo_lite.text.tokenizer import add_tokens, encode

PICTURES = [Image(PIL.Image.new("RGB", (2, 2), (i, 0, 0))) for i in range(6)]

words = st.text(alphabet="ab 3?=é", max_size=6)
texts = st.builds(Text, words, loss=st.booleans(), ends_chunk=st.booleans())
documents = st.lists(st.one_of(texts, st.sampled_from(PICTURES)), max_size=10).map(Document)
templates = st.builds(Template, begin=st.just(True), end=st.booleans(), image_tokens=st.integers(1, 3))


def test_missing_tokens_are_added_behind_the_known_ones(make_tokenizer) -> None:
    tokenizer = make_tokenizer(pad=False, end_of_chunk=False)
    before = tokenizer.get_vocab()
    assert add_tokens(tokenizer) == ["<|endofchunk|>", "<image>", "<|pad|>"]
    after = tokenizer.get_vocab()
    assert {token: after[token] for token in before} == before
    assert sorted(set(after.values()) - set(before.values())) == [
        len(before),
        len(before) + 1,
        len(before) + 2,
    ]
    assert tokenizer.pad_token == "<|pad|>"


def test_tokens_that_are_there_are_kept(make_tokenizer) -> None:
    tokenizer = make_tokenizer()
    assert add_tokens(tokenizer) == ["<image>"]
    assert add_tokens(tokenizer) == []


def test_added_tokens_are_left_out_of_decoded_text(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = encode(Document([PICTURES[0], Text("3 ? 5", ends_chunk=True)]), tokenizer, Template()).input_ids
    assert tokenizer.decode(ids) == "<|endoftext|><image>3 ? 5<|endofchunk|>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "3 ? 5"


def test_a_small_document_by_hand(tokenizer: PreTrainedTokenizerFast) -> None:
    document = Document([Text("a", loss=False), PICTURES[0], Text("b", ends_chunk=True), PICTURES[1]])
    encoded = encode(document, tokenizer, Template(), complete=True)
    names = ["<|endoftext|>", "a", "<image>", "b", "<|endofchunk|>", "<image>", "<|endoftext|>"]
    bos, a, image, b, chunk, _, eos = ids = tokenizer.convert_tokens_to_ids(names)
    assert encoded.input_ids == ids
    assert encoded.labels == [-100, -100, -100, b, chunk, -100, eos]
    assert encoded.media_index == [-1, -1, 0, 0, 0, 1, 1]
    assert encoded.images == (PICTURES[0], PICTURES[1])


def test_the_first_token_of_a_document_is_never_trained_on(make_tokenizer) -> None:
    tokenizer = make_tokenizer(bos=False)
    add_tokens(tokenizer)
    encoded = encode(Document(["ab"]), tokenizer, Template(), complete=True)
    assert encoded.input_ids[0] != tokenizer.eos_token_id
    assert encoded.labels[0] == -100
    assert encoded.labels[1:] == encoded.input_ids[1:]


@settings(max_examples=50, deadline=None)
@given(documents, templates, st.booleans())
def test_the_layout_of_any_document(
    tokenizer: PreTrainedTokenizerFast, document: Document, template: Template, complete: bool
) -> None:
    encoded = encode(document, tokenizer, template, complete)
    image_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    marks = [i for i, token in enumerate(encoded.input_ids) if token == image_id]
    assert encoded.images == document.images
    assert len(marks) == len(document.images) * template.image_tokens
    assert len(encoded.input_ids) == len(encoded.labels) == len(encoded.media_index)
    for position, (token, label, index) in enumerate(
        zip(encoded.input_ids, encoded.labels, encoded.media_index, strict=True)
    ):
        seen = sum(mark <= position for mark in marks)
        assert index == -(-seen // template.image_tokens) - 1
        assert label in (-100, token)
        assert label == -100 or (position > 0 and token != image_id)


@settings(max_examples=40, deadline=None)
@given(documents, texts, templates)
def test_a_prompt_is_the_beginning_of_the_complete_document(
    tokenizer: PreTrainedTokenizerFast, prompt: Document, answer: Text, template: Template
) -> None:
    short = encode(prompt, tokenizer, template)
    whole = encode(Document([*prompt, answer]), tokenizer, template, complete=True)
    t = len(short)
    assert whole.input_ids[:t] == short.input_ids
    assert whole.media_index[:t] == short.media_index


@settings(max_examples=50, deadline=None)
@given(documents, templates, st.integers(1, 40))
def test_truncation_cuts_on_the_right_and_drops_marks_and_images_together(
    tokenizer: PreTrainedTokenizerFast, document: Document, template: Template, max_length: int
) -> None:
    whole = encode(document, tokenizer, template, complete=True)
    cut = encode(document, tokenizer, template, complete=True, max_length=max_length)
    t = len(cut)
    image_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    assert t <= max_length
    assert (cut.input_ids, cut.labels) == (whole.input_ids[:t], whole.labels[:t])
    assert cut.media_index == whole.media_index[:t]
    assert len(cut.images) == max(cut.media_index) + 1
    assert cut.input_ids.count(image_id) == len(cut.images) * template.image_tokens
    if t < min(max_length, len(whole)):  # cut early only in front of an image that did not fit whole
        assert whole.input_ids[t] == image_id


def test_a_prompt_that_is_too_long_is_an_error_not_a_cut(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = Document(["abcdefgh"])
    length = len(encode(prompt, tokenizer, Template()))
    assert len(encode(prompt, tokenizer, Template(), max_length=length)) == length
    with pytest.raises(
        FlamingoError, match=f"query 7: the prompt has {length} tokens, the limit is {length - 1}"
    ):
        encode(prompt, tokenizer, Template(), max_length=length - 1, name="query 7")


@pytest.mark.parametrize("text", ["<image>", "see <image> here", "<image><image>"])
def test_a_mark_inside_a_text_is_refused_by_document(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    with pytest.raises(FlamingoError, match="page 3: segment 1"):
        encode(Document(["a", text]), tokenizer, Template(), name="page 3")


def test_an_empty_document_is_an_error_where_no_token_begins_it(make_tokenizer) -> None:
    tokenizer = make_tokenizer(bos=False)
    add_tokens(tokenizer)
    with pytest.raises(FlamingoError, match="page 3"):
        encode(Document([]), tokenizer, Template(), name="page 3")


def test_an_image_that_never_fits_is_an_error(tokenizer: PreTrainedTokenizerFast) -> None:
    template = Template(begin=False, image_tokens=9)
    with pytest.raises(FlamingoError, match="no tokens"):
        encode(Document([PICTURES[0]]), tokenizer, template, complete=True, max_length=8)
