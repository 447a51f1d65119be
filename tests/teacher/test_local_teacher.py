"""The local teacher: a language model of transformers under its own chat template."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from flamingo_lite.errors import FlamingoError, SampleError
from flamingo_lite.teacher import Message, Sampling
from flamingo_lite.teacher.local import Local

TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
CHAT = [Message("system", "be short"), Message("user", "hello")]


@pytest.fixture(scope="module")
def chat_directory(language_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random language model, with a chat template."""
    directory = tmp_path_factory.mktemp("chat")
    AutoModelForCausalLM.from_pretrained(language_directory).save_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(language_directory)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(directory)
    return directory


def test_it_says_what_generate_says_of_the_templated_prompt(chat_directory: Path) -> None:
    answer = Local(str(chat_directory)).answer(CHAT, Sampling(8))
    tokenizer = AutoTokenizer.from_pretrained(chat_directory)
    model = AutoModelForCausalLM.from_pretrained(chat_directory)
    prompt = tokenizer("[system] be short\n[user] hello\n[assistant] ", return_tensors="pt")
    ids = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert answer.text == tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert answer.prompt_tokens == prompt["input_ids"].shape[1] and answer.answer_tokens == len(ids)
    assert answer.is_cut is (tokenizer.eos_token_id not in ids.tolist())


def test_a_drawn_answer_is_a_function_of_its_seed_and_moves_no_other_generator(chat_directory: Path) -> None:
    teacher = Local(str(chat_directory))
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first = teacher.answer(CHAT, Sampling(8, 2.0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)
    assert teacher.answer(CHAT, Sampling(8, 2.0, 1)) == first != teacher.answer(CHAT, Sampling(8, 2.0, 2))


def test_a_prompt_without_room_for_an_answer_costs_itself_alone(chat_directory: Path) -> None:
    teacher = Local(str(chat_directory))
    with pytest.raises(SampleError, match="above the model's 256 positions"):
        teacher.answer([Message("user", "x" * 300)], Sampling(8))


def test_a_template_that_knows_no_system_has_its_words_in_front_of_the_users(
    chat_directory: Path, tmp_path: Path
) -> None:
    shutil.copytree(chat_directory, tmp_path / "model")
    template = tmp_path / "model" / "chat_template.jinja"
    refusing = "{{ raise_exception('System role not supported') if messages[0].role == 'system' }}"
    template.write_text(refusing + TEMPLATE)
    answer = Local(str(tmp_path / "model")).answer(CHAT, Sampling(8))
    assert answer == Local(str(chat_directory)).answer([Message("user", "be short\n\nhello")], Sampling(8))
    template.write_text("{{ raise_exception('never') }}")
    with pytest.raises(SampleError, match="its chat template refuses it: never") as caught:
        Local(str(tmp_path / "model")).answer(CHAT, Sampling(8))
    assert caught.value.reason == "refused"


def test_a_model_without_a_chat_template_is_refused(language_directory: Path) -> None:
    with pytest.raises(FlamingoError, match="has no chat template; expected a model that was tuned"):
        Local(str(language_directory))
