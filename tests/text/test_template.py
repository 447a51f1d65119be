"""The template: what is written where, and what is trained on."""

import PIL.Image
import pytest

from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import FlamingoError
from flamingo_lite.text.template import Template

PICTURE = Image(PIL.Image.new("RGB", (2, 2)))


def written(document: Document, template: Template | None = None, complete: bool = True) -> str:
    """The pieces in one line; what is trained on in brackets."""
    pieces = (template or Template()).write(document, bos="<s>", eos="</s>", complete=complete)
    return "".join(f"[{p.text}]" if p.loss else p.text * p.count for p in pieces)


def test_a_complete_document_begins_and_ends() -> None:
    assert written(Document([PICTURE, "a"])) == "<s><image>[a][</s>]"


def test_a_prompt_has_no_end() -> None:
    assert written(Document([PICTURE, "a"]), complete=False) == "<s><image>[a]"


def test_the_end_of_a_chunk_is_trained_on_exactly_when_its_text_is() -> None:
    document = Document([Text("a", ends_chunk=True), Text("b", loss=False, ends_chunk=True), "c"])
    assert written(document, complete=False) == "<s>[a][<|endofchunk|>]b<|endofchunk|>[c]"


def test_the_end_is_not_trained_on_after_a_text_that_is_not() -> None:
    assert written(Document(["a", Text("b", loss=False)])) == "<s>[a]b</s>"


def test_the_end_is_trained_on_after_an_image() -> None:
    assert written(Document([Text("a", loss=False), PICTURE])) == "<s>a<image>[</s>]"


def test_without_an_end_of_chunk_nothing_is_written_there() -> None:
    assert (
        written(Document([Text("a", ends_chunk=True), "b"]), Template(end_of_chunk=None)) == "<s>[a][b][</s>]"
    )


def test_images_in_a_row_share_the_tokens_around_them() -> None:
    document = Document([PICTURE, PICTURE, "a", PICTURE])
    assert written(document, Template(around_images="|")) == "<s>|<image>|<image>|[a]|<image>|[</s>]"


def test_an_image_is_as_many_marks_as_the_template_says() -> None:
    assert written(Document([PICTURE, "a"]), Template(image_tokens=3)) == "<s>" + "<image>" * 3 + "[a][</s>]"


def test_only_images_that_open_the_document_come_before_the_begin_token() -> None:
    template = Template(begin_after_images=True, image_tokens=2)
    assert (
        written(Document([PICTURE, PICTURE, "a", PICTURE]), template)
        == "<image>" * 4 + "<s>[a]" + "<image>" * 2 + "[</s>]"
    )
    assert written(Document([PICTURE]), template) == "<image><image><s>[</s>]"
    assert written(Document(["a"]), template) == "<s>[a][</s>]"


def test_begin_and_end_can_be_left_out() -> None:
    assert written(Document(["a"]), Template(begin=False, end=False)) == "[a]"


def test_a_tokenizer_without_begin_and_end_tokens_gets_none() -> None:
    pieces = Template().write(Document(["a"]), bos=None, eos=None, complete=True)
    assert [piece.text for piece in pieces] == ["a"]


def test_an_image_of_no_marks_is_refused() -> None:
    with pytest.raises(FlamingoError, match="image_tokens"):
        Template(image_tokens=0)


def test_an_end_that_stands_already_is_not_written_twice() -> None:
    template = Template(end_of_chunk="</s>")
    document = Document([Text("a", ends_chunk=True), "b"])
    assert written(document, template) == "<s>[a][</s>][b][</s>]"
    assert written(Document(document[:1]), template) == "<s>[a][</s>]"
