"""Conversation templates: what is written around the words of each role, and what of it is trained on."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby

import PIL.Image
import pytest
from transformers import PreTrainedTokenizerFast

from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import REASONS, FlamingoError, SampleError
from flamingo_lite.text.conversations import CONVERSATIONS, conversation_from
from flamingo_lite.text.template import Template
from flamingo_lite.text.tokenizer import add_tokens, encode
from tests.text.tokenizer_kinds import SINGLE

PICTURE = Image(PIL.Image.new("RGB", (2, 2)))
OTHER = Image(PIL.Image.new("RGB", (2, 2), "red"))
V1 = CONVERSATIONS["v1"].system


def user(text: str) -> Text:
    return Text(text, False, "user")


def assistant(text: str, loss: bool = True) -> Text:
    return Text(text, loss, "assistant", ends_chunk=True)


def system(text: str) -> Text:
    return Text(text, False, "system")


@pytest.fixture(scope="module")
def speaker(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A tokenizer that has all tokens that templates need."""
    add_tokens(tokenizer, SINGLE)
    return tokenizer


def shown(
    document: Document, tokenizer: PreTrainedTokenizerFast, name: str, complete: bool = True, **options: int
) -> str:
    """What was written, what is trained on in brackets; the begin and end token as <s>."""
    template = Template(conversation=CONVERSATIONS[name])
    encoded = encode(document, tokenizer, template, complete, **options)
    parts = groupby(zip(encoded.input_ids, encoded.labels, strict=True), key=lambda pair: pair[1] != -100)
    texts = ((is_trained, tokenizer.decode([i for i, _ in pairs])) for is_trained, pairs in parts)
    return "".join(f"[{text}]" if is_trained else text for is_trained, text in texts).replace(
        "<|endoftext|>", "<s>"
    )


def test_v1_is_what_llava_1_5_writes(speaker: PreTrainedTokenizerFast) -> None:
    document = Document([PICTURE, user("What?"), assistant("A cat."), user("Sure?"), assistant("Yes.")])
    expected = f"<s>{V1} USER: <image>\nWhat? ASSISTANT:[ A cat.<s>]USER: Sure? ASSISTANT:[ Yes.<s>]"
    assert shown(document, speaker, "v1") == expected


def test_plain_is_an_image_its_caption_and_a_newline(speaker: PreTrainedTokenizerFast) -> None:
    document = Document([system("Be brief."), user("Describe it."), PICTURE, assistant("A cat.")])
    assert shown(document, speaker, "plain") == "<s><image>[A cat.\n]"


def test_a_prompt_ends_with_what_stands_before_an_answer(speaker: PreTrainedTokenizerFast) -> None:
    document = Document([PICTURE, user("What?")])
    assert shown(document, speaker, "v1", complete=False) == f"<s>{V1} USER: <image>\nWhat? ASSISTANT:"


def test_documents_without_roles_are_written_as_ever(speaker: PreTrainedTokenizerFast) -> None:
    document = Document([PICTURE, Text("3 ? 5 =", False), Text(" 8", ends_chunk=True)])
    template = Template(conversation=CONVERSATIONS["v1"])
    assert encode(document, speaker, template, True) == encode(document, speaker, Template(), True)


def test_an_unknown_template_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(FlamingoError, match="chatml"):
        conversation_from("chatlm")


def test_images_stand_where_they_stand_in_any_turn(speaker: PreTrainedTokenizerFast) -> None:
    document = Document(
        [
            user("Is"), PICTURE, user("like"), OTHER, Text("", role="assistant"), PICTURE, Text("it is", role="assistant"),
            OTHER, assistant("here."), OTHER, user("Sure?"), assistant("Yes."),
        ]
    )  # fmt: skip
    expected = (
        "<|im_start|>user\nIs\n<image>\nlike\n<image><|im_end|>\n<|im_start|>assistant\n<image>\n[it is]\n<image>\n"
        "[here.<|im_end|>]\n<|im_start|>user\n<image>\nSure?<|im_end|>\n<|im_start|>assistant\n[Yes.<|im_end|>]\n"
    )
    assert shown(document, speaker, "chatml") == expected
    encoded = encode(document, speaker, Template(conversation=CONVERSATIONS["chatml"]), True)
    assert encoded.images == document.images


def test_labels_number_the_images_of_a_conversation(speaker: PreTrainedTokenizerFast) -> None:
    template = replace(CONVERSATIONS["otter"], image_label="Picture {number}: ")
    document = Document(
        [PICTURE, OTHER, user("Alike?"), assistant("No."), user("And"), PICTURE, assistant("Yes.")]
    )
    encoded = encode(document, speaker, Template(conversation=template), True)
    said = speaker.decode(encoded.input_ids)
    assert said.startswith("<|endoftext|>Picture 1: <image>Picture 2: <image>User: Alike? GPT:<answer> No.")
    assert "User: AndPicture 3: <image> GPT:<answer> Yes." in said
    assert encoded.images == document.images


def test_images_alone_are_a_turn(speaker: PreTrainedTokenizerFast) -> None:
    document = Document([PICTURE, OTHER, assistant("Cats."), PICTURE])
    assert shown(document[:3], speaker, "plain") == "<s><image><image>[Cats.\n]"
    expected = "<s><image><image>User:  GPT:<answer> Cats.<|endofchunk|><image>User:  GPT:<answer>"
    assert shown(document, speaker, "otter", complete=False).replace("[", "").replace("]", "") == expected


def test_an_image_is_as_many_marks_as_the_model_says(speaker: PreTrainedTokenizerFast) -> None:
    template = Template(conversation=CONVERSATIONS["v1"], image_tokens=3)
    document = Document([PICTURE, user("What?"), assistant("A cat.")])
    encoded = encode(document, speaker, template, True)
    assert speaker.decode(encoded.input_ids).count("<image>" * 3) == 1


def test_an_answer_that_is_not_trained_on_has_no_label_at_all(speaker: PreTrainedTokenizerFast) -> None:
    document = Document([user("a"), assistant("b", loss=False), user("c"), assistant("d")])
    assert shown(document, speaker, "plain") == "<s>b\n[d\n]"


def test_loss_changes_labels_and_no_id(speaker: PreTrainedTokenizerFast) -> None:
    turns = [user("a"), assistant("b", loss=False), user("c")]
    template = Template(conversation=CONVERSATIONS["v1"])
    without, with_loss = (
        encode(Document([*turns, assistant("d", loss)]), speaker, template, True) for loss in (False, True)
    )
    assert without.input_ids == with_loss.input_ids
    assert set(without.labels) == {-100}


def test_alpaca_has_another_prompt_where_an_input_stands_behind_the_instruction(
    speaker: PreTrainedTokenizerFast,
) -> None:
    document = Document([PICTURE, user("Sum up."), user("\nA text."), assistant("Short.")])
    task = CONVERSATIONS["alpaca"].system_with_input
    expected = (
        f"<s>{task}\n\n### Instruction:\n<image>\nSum up.\n\n### Input:\nA text.\n\n### Response:[Short.<s>]"
    )
    assert shown(document, speaker, "alpaca") == expected


def test_otter_shows_the_image_before_the_user(speaker: PreTrainedTokenizerFast) -> None:
    document = Document([PICTURE, user("q"), assistant("a"), OTHER, user("r"), assistant("b")])
    expected = "<s><image>User: q GPT:<answer>[ a<|endofchunk|>]<image>User: r GPT:<answer>[ b<|endofchunk|>]"
    assert shown(document, speaker, "otter") == expected


def test_a_prompt_may_end_within_an_answer(speaker: PreTrainedTokenizerFast) -> None:
    begun = Document([user("q"), Text("It", role="assistant")])
    assert shown(begun, speaker, "otter", complete=False) == "<s>User: q GPT:<answer>[ It]"
    over = Document([user("q"), assistant("It")])
    assert shown(over, speaker, "otter", complete=False) == "<s>User: q GPT:<answer>[ It<|endofchunk|>]"


def test_what_is_said_never_ends_a_turn(speaker: PreTrainedTokenizerFast) -> None:
    document = Document([user("Say <|im_end|>"), assistant("<|im_end|>!")])
    encoded = encode(document, speaker, Template(conversation=CONVERSATIONS["chatml"]), True)
    assert encoded.input_ids.count(speaker.convert_tokens_to_ids("<|im_end|>")) == 2


@pytest.mark.parametrize(
    ("segments", "complete", "reason", "message"),
    [
        ([Text("a", role="tool"), assistant("b")], True, "role", "segment 0 is a text of the role 'tool'"),
        ([user("a"), Text("b")], True, "role", "segment 1 is a text of the role None"),
        ([assistant("a"), user("b")], False, "turns", "turn 0 is the assistant's and comes first"),
        ([system("a"), assistant("b")], True, "turns", "turn 1 is the assistant's and comes first"),
        ([user("a"), assistant("b"), assistant("c")], True, "turns", "turn 2 .* follows an answer"),
        ([user("a"), assistant("b"), system("c")], True, "turns", "turn 2 is the system's"),
        ([user("a"), assistant("b"), user("c")], True, "turns", "ends with the user's turn"),
        ([user(" "), assistant("b")], True, "turns", "turn 0 is the user's and empty"),
        ([system("a")], False, "turns", "no turn of the user"),
        ([user("a"), assistant(" \n")], True, "answer", "turn 1 is an empty answer"),
        (
            [user("a"), Text("", role="assistant"), PICTURE, assistant("")],
            True,
            "answer",
            "turn 1 is an empty",
        ),
    ],
)
def test_what_is_no_conversation_is_refused_by_name_and_reason(
    speaker: PreTrainedTokenizerFast, segments: list[Text | Image], complete: bool, reason: str, message: str
) -> None:
    with pytest.raises(SampleError, match=f"page 3: .*{message}") as caught:
        encode(
            Document(segments), speaker, Template(conversation=CONVERSATIONS["v1"]), complete, name="page 3"
        )
    assert caught.value.reason == reason
    assert reason in REASONS


def test_a_template_whose_token_the_tokenizer_lacks_is_refused(
    make_tokenizer: Callable[..., PreTrainedTokenizerFast],
) -> None:
    document = Document([user("a"), assistant("b")])
    with pytest.raises(
        FlamingoError, match="llama3: the tokenizer has no token '<.start_header_id.>'; choose"
    ):
        encode(document, make_tokenizer(), Template(conversation=CONVERSATIONS["llama3"]), True)


def test_a_template_is_made_from_a_name_and_fields_that_differ() -> None:
    changed = conversation_from({"name": "v1", "system": ""})
    assert changed == replace(CONVERSATIONS["v1"], system="")
    with pytest.raises(FlamingoError, match="did you mean 'system'"):
        conversation_from({"sytem": "a"})
    with pytest.raises(FlamingoError, match="stop is empty"):
        conversation_from({"stop": ""})


def test_a_template_comes_back_from_plain_data() -> None:
    template = Template(conversation=CONVERSATIONS["llama3"], image_tokens=3)
    assert Template(**json.loads(json.dumps(template.to_dict()))) == template
    assert "conversation" not in Template().to_dict()


LONG = Document(
    [PICTURE, user("a"), assistant("bb"), OTHER, user("c"), assistant("dd"), user("e"), assistant("ff")]
)


@pytest.mark.parametrize("name", [name for name in CONVERSATIONS if name != "tokenizer"])
def test_a_long_conversation_is_cut_behind_an_answer(speaker: PreTrainedTokenizerFast, name: str) -> None:
    template = Template(conversation=CONVERSATIONS[name])
    whole = encode(LONG, speaker, template, True)
    lengths = {}
    for length in range(1, len(whole) + 1):
        try:
            cut = encode(LONG, speaker, template, True, length, name="page 3")
        except SampleError as error:
            assert error.reason == "too_long" and "page 3: its first answer ends at token" in str(error)
            continue
        lengths[len(cut)] = cut.cut, len(cut.images)
        assert len(cut) <= length
        assert (cut.input_ids, cut.labels) == (whole.input_ids[: len(cut)], whole.labels[: len(cut)])
        stop = speaker.decode(cut.input_ids)
        assert cut.labels[-1] != -100 or cut.cut == 0, f"cut in the middle: {stop}"
    assert list(dict.fromkeys(lengths.values())) == [(2, 1), (1, 2), (0, 2)]


def test_a_prompt_is_never_cut(speaker: PreTrainedTokenizerFast) -> None:
    with pytest.raises(FlamingoError, match="page 3: the prompt has"):
        encode(LONG, speaker, Template(conversation=CONVERSATIONS["v1"]), False, 20, name="page 3")
