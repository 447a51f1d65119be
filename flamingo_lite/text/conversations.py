"""The known conversation templates by name. Each is what its own project writes, but that every image keeps its place."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from flamingo_lite.document import END_OF_CHUNK
from flamingo_lite.errors import FlamingoError
from flamingo_lite.names import check_choice, unknown
from flamingo_lite.text.conversation import BEGIN, END, TOKENIZER, ConversationTemplate

# Stanford Alpaca's two prompts (train.py: PROMPT_DICT).
_ALPACA = "Below is an instruction that describes a task{}. Write a response that appropriately completes the request."
_ALPACA_INPUT = ", paired with an input that provides further context"

_KNOWN = (
    # LLaVA's conversation.py: `plain` for the alignment of the projector, v0 and v1 with Vicuna's system messages.
    ConversationTemplate(name="plain", writes_questions=False, stop="\n", image_joint=""),
    ConversationTemplate(
        name="v0",
        system="A chat between a curious human and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the human's questions.",
        system_after="###",
        user_before="Human: ",
        user_after="###",
        assistant_before="Assistant: ",
        stop="###",
    ),
    ConversationTemplate(
        name="v1",
        system="A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions.",
        system_after=" ",
        user_before="USER: ",
        user_after=" ",
        assistant_before="ASSISTANT: ",
    ),
    # The chat templates published with Llama-2-chat, Llama-3-Instruct and Gemma 3, and OpenAI's ChatML.
    ConversationTemplate(
        name="llama2",
        start="",
        system_before="<<SYS>>\n",
        system_after="\n<</SYS>>\n\n",
        system_in_user=True,
        user_before=f"{BEGIN}[INST] ",
        user_after=" [/INST]",
        assistant_before=" ",
        stop=f" {END}",
        strips=True,
    ),
    ConversationTemplate(
        name="llama3",
        system_before="<|start_header_id|>system<|end_header_id|>\n\n",
        system_after="<|eot_id|>",
        user_before="<|start_header_id|>user<|end_header_id|>\n\n",
        user_after="<|eot_id|>",
        assistant_before="<|start_header_id|>assistant<|end_header_id|>\n\n",
        stop="<|eot_id|>",
        strips=True,
        tokens=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    ConversationTemplate(
        name="chatml",
        start="",
        system_before="<|im_start|>system\n",
        system_after="<|im_end|>\n",
        user_before="<|im_start|>user\n",
        user_after="<|im_end|>\n",
        assistant_before="<|im_start|>assistant\n",
        stop="<|im_end|>",
        assistant_after="\n",
        tokens=("<|im_start|>", "<|im_end|>"),
    ),
    ConversationTemplate(
        name="gemma",
        system_after="\n\n",
        system_in_user=True,
        user_before="<start_of_turn>user\n",
        user_after="<end_of_turn>\n",
        assistant_before="<start_of_turn>model\n",
        stop="<end_of_turn>",
        assistant_after="\n",
        strips=True,
        tokens=("<start_of_turn>", "<end_of_turn>"),
    ),
    # Several turns, which Alpaca has not, follow each other as blocks of the same kind.
    ConversationTemplate(
        name="alpaca",
        system=_ALPACA.format(""),
        system_with_input=_ALPACA.format(_ALPACA_INPUT),
        system_after="\n\n",
        user_before="### Instruction:\n",
        input_before="\n\n### Input:\n",
        user_after="\n\n",
        assistant_before="### Response:",
    ),
    # Otter's mimicit_dataset.py. Its tokenizer has <answer> as one token; elsewhere it is words.
    ConversationTemplate(
        name="otter",
        system_after=" ",
        images_first=True,
        user_before="User: ",
        user_after=" ",
        assistant_before="GPT:<answer> ",
        stop=END_OF_CHUNK,
        image_joint="",
        tokens=(END_OF_CHUNK,),
    ),
    ConversationTemplate(name=TOKENIZER),
)

CONVERSATIONS: dict[str, ConversationTemplate] = {template.name: template for template in _KNOWN}


def conversation_from(value: Any) -> ConversationTemplate | None:
    """A template from its name, or from fields in which it differs: from the known one of its `name`, or from none.

    Errors: `FlamingoError` for a name or a field that there is not.
    """
    if value is None or isinstance(value, ConversationTemplate):
        return value
    if isinstance(value, str):
        check_choice("conversation template", value, CONVERSATIONS)
        return CONVERSATIONS[value]
    if not isinstance(value, Mapping):
        raise FlamingoError(
            f"conversation template: {value!r}; expected a name ({', '.join(CONVERSATIONS)}) or fields"
        )
    names = [field.name for field in fields(ConversationTemplate)]
    for name in value:
        if name not in names:
            raise unknown("field of a conversation template:", str(name), names)
    known = CONVERSATIONS.get(value.get("name", ""), ConversationTemplate())
    try:
        return replace(known, **value)
    except TypeError as error:
        raise FlamingoError(f"conversation template: {error}; expected words in every field") from error
