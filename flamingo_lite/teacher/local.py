"""A teacher on this machine: a causal language model of transformers, with its tokenizer's chat template."""

import contextlib
import threading
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from flamingo_lite.errors import FlamingoError, SampleError, first_line
from flamingo_lite.teacher.messages import Answer, Message, Sampling


class Local:
    """The model `name`, a directory or a name on the hub; one answer at a time. No code in a checkpoint is run, and
    nothing is unpickled.

    Errors: `FlamingoError` for a model that cannot be loaded, or whose tokenizer has no chat template.
    """

    def __init__(self, name: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.name = name
        self._lock = threading.Lock()
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            model: Any = AutoModelForCausalLM.from_pretrained(
                name, trust_remote_code=False, use_safetensors=True, dtype="auto"
            )
        except (OSError, ValueError, KeyError) as error:
            raise FlamingoError(
                f"{name}: cannot be loaded as a causal language model ({first_line(error)})"
            ) from error
        if not tokenizer.chat_template:
            raise FlamingoError(
                f"{name}: its tokenizer has no chat template; expected a model that was tuned to follow instructions"
            )
        self._tokenizer = tokenizer
        self._model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def answer(self, messages: Sequence[Message], sampling: Sampling) -> Answer:
        """Errors: `SampleError` for a prompt that leaves the model no room for an answer, or that its chat template
        refuses."""
        import torch

        prompt = self._written(messages).to(self._model.device)
        length = prompt["input_ids"].shape[1]
        room = getattr(self._model.config, "max_position_embeddings", None)
        if room is not None and length + sampling.max_tokens > room:
            raise SampleError(
                f"{self.name}: a prompt of {length:,} tokens and {sampling.max_tokens:,} for the answer, "
                f"above the model's {room:,} positions",
                "refused",
            )
        drawing: dict[str, Any] = {"do_sample": bool(sampling.temperature)}
        if sampling.temperature:
            drawing["temperature"] = sampling.temperature
        # The generator of random numbers is the process's: seeded for this answer, and put back.
        with self._lock, torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(sampling.seed or 0)
            ids = self._model.generate(**prompt, max_new_tokens=sampling.max_tokens, **drawing)[0, length:]
        ends = self._model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        is_cut = len(ids) == sampling.max_tokens and int(ids[-1]) not in ends
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        return Answer(text.strip(), length, len(ids), is_cut)

    def _written(self, messages: Sequence[Message]) -> Any:
        """The prompt. Where the chat template knows no system (Gemma's), its words open the user's first message."""
        chat = [{"role": message.role, "content": message.text} for message in messages]
        options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
        try:
            return self._tokenizer.apply_chat_template(chat, **options)
        except TemplateError as error:
            refusal = error
        system, *others = chat
        if system["role"] == "system" and others:
            first = {**others[0], "content": f"{system['content']}\n\n{others[0]['content']}"}
            with contextlib.suppress(TemplateError):
                return self._tokenizer.apply_chat_template([first, *others[1:]], **options)
        raise SampleError(f"{self.name}: its chat template refuses it: {first_line(refusal)}", "refused")
