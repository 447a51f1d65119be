"""A model of transformers as the two callables that an evaluation puts its prompts to.

Shape letters: r rows (a prompt with one candidate each), t text positions, v vocabulary.
"""

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from flamingo_lite.document import Document, Text
from flamingo_lite.errors import FlamingoError, SampleError
from flamingo_lite.evaluation.answering import ROUNDING, TYPICAL_LOGIT, is_out_of_memory
from flamingo_lite.evaluation.answers import Written
from flamingo_lite.evaluation.metrics import GenerationFailure
from flamingo_lite.evaluation.others.writing import WrittenPrompt, answer_text, write
from flamingo_lite.evaluation.ranking import Likelihood
from flamingo_lite.evaluation.rendering import BETWEEN_EXAMPLES
from flamingo_lite.generation.generate import Margins, end_tokens

T = TypeVar("T")


class _TooLong(SampleError):
    """`rows`: which of a batch."""

    def __init__(self, message: str, rows: list[int]) -> None:
        super().__init__(message, "too_long")
        self.rows = rows


@dataclass
class TransformersAnswers:
    """`generate` and `rank` of one model. Prompts with roles are written by the processor's chat template."""

    model: Any
    processor: Any
    batch_size: int = 64

    @property
    def rounding(self) -> float:
        return ROUNDING.get(self.model.dtype, ROUNDING[torch.bfloat16])

    def generate(
        self, documents: Sequence[Document], max_new_tokens: int
    ) -> list[str | Written | GenerationFailure]:
        """See `answers.Generate`."""
        written = [self._write(document) for document in documents]

        def run(places: Sequence[int]) -> list[str | Written]:
            return self._generated([prompt_at(written, i) for i in places], max_new_tokens)

        return self._answered(written, run)

    def rank(
        self, documents: Sequence[Document], candidates: Sequence[Sequence[Text]]
    ) -> list[Sequence[Likelihood] | GenerationFailure]:
        """See `ranking.Rank`. Every candidate runs with its whole prompt; that which ends an answer is counted."""
        written = [self._write(document) for document in documents]

        def run(places: Sequence[int]) -> list[Sequence[Likelihood]]:
            found: list[Sequence[Likelihood]] = []
            for row, i in enumerate(places):
                try:
                    found.append(self._likelihoods(prompt_at(written, i), candidates[i]))
                except _TooLong as error:
                    raise _TooLong(str(error), [row]) from None
            return found

        return self._answered(written, run)

    def _write(self, document: Document) -> WrittenPrompt | GenerationFailure:
        try:
            return write(document, self.processor)
        except SampleError as error:
            return GenerationFailure(str(error))

    def _answered(
        self, written: Sequence[WrittenPrompt | GenerationFailure], run: Callable[[Sequence[int]], list[T]]
    ) -> list[T | GenerationFailure]:
        """What `run` gives of each prompt, in batches that are halved where memory does not hold them."""
        found: dict[int, T | GenerationFailure] = {
            i: each for i, each in enumerate(written) if isinstance(each, GenerationFailure)
        }
        batch_size = self.batch_size
        for group in self._groups(written):
            while left := [i for i in group if i not in found]:
                tried = left[:batch_size]
                try:
                    found |= dict(zip(tried, run(tried), strict=True))
                except _TooLong as error:
                    found |= {tried[row]: GenerationFailure(str(error)) for row in error.rows}
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    if len(tried) == 1:
                        found[tried[0]] = GenerationFailure("out of memory with this prompt alone")
                    batch_size = max(1, len(tried) // 2)
        return [found[i] for i in range(len(written))]

    def _groups(self, written: Sequence[WrittenPrompt | GenerationFailure]) -> Iterable[list[int]]:
        """Prompts of equally many images, shortest first: processors differ in how they take an uneven batch."""
        groups: dict[int, list[int]] = {}
        for i, prompt in enumerate(written):
            if isinstance(prompt, WrittenPrompt):
                groups.setdefault(len(prompt.images), []).append(i)
        for group in groups.values():
            yield sorted(group, key=lambda i: len(prompt_at(written, i).text))

    def _inputs(self, prompts: Sequence[WrittenPrompt], texts: Sequence[str], room: int) -> Any:
        """What the model takes. Errors: `_TooLong` naming the rows that leave no `room` for new tokens."""
        begin = self.processor.tokenizer.bos_token
        # A chat template may have written the begin token already.
        is_begun = begin is not None and all(text.startswith(begin) for text in texts)
        images = [list(prompt.images) for prompt in prompts]
        inputs = self.processor(
            text=list(texts),
            images=images if any(images) else None,
            return_tensors="pt",
            padding=True,
            **({"add_special_tokens": False} if is_begun else {}),
        ).to(self.model.device, self.model.dtype)
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        lengths = inputs["attention_mask"].sum(1).tolist()
        if limit is not None and (rows := [i for i, n in enumerate(lengths) if n + room > limit]):
            n = lengths[rows[0]]
            raise _TooLong(
                f"its prompt has {n} tokens, {n + room} with the new ones; the model's context is {limit}: use fewer shots "
                "or less text",
                rows,
            )
        return inputs

    @torch.inference_mode()
    def _generated(self, prompts: Sequence[WrittenPrompt], max_new_tokens: int) -> list[str | Written]:
        inputs = self._inputs(prompts, [prompt.text for prompt in prompts], max_new_tokens)
        tokenizer, margins = self.processor.tokenizer, Margins()
        is_chat = prompts[0].is_chat
        ends = end_tokens(
            tokenizer.eos_token_id, self.model.generation_config.eos_token_id, tokenizer.pad_token_id
        )
        out = self.model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=tokenizer.pad_token_id,
            logits_processor=LogitsProcessorList([margins]),
            **({} if is_chat else {"stop_strings": [BETWEEN_EXAMPLES], "tokenizer": tokenizer}),
        )
        written: list[str | Written] = []
        for row, ids in enumerate(out[:, inputs["input_ids"].shape[1] :].tolist()):
            length = next((i for i, token in enumerate(ids) if token in ends), len(ids))
            raw = tokenizer.decode(ids[:length], skip_special_tokens=True)
            text, stop, _ = (raw, "", "") if is_chat else raw.partition(BETWEEN_EXAMPLES)
            # What ends a text is a choice too; a stop string is among its tokens, and is padded behind.
            steps = length if stop else min(length + 1, len(margins.steps))
            written.append(Written(text, margins.least(row, max(1, steps)) / self.rounding))
        return written

    def _likelihoods(self, prompt: WrittenPrompt, candidates: Sequence[Text]) -> list[Likelihood]:
        texts = [prompt.text + answer_text(prompt, candidate, self.processor) for candidate in candidates]
        tails = self._tails(prompt.text, texts)
        found: list[Likelihood] = []
        for start in range(0, len(texts), self.batch_size):
            chosen = slice(start, start + self.batch_size)
            found += self._row_likelihoods(prompt, texts[chosen], tails[chosen])
        return found

    def _tails(self, prompt: str, texts: Sequence[str]) -> list[list[int]]:
        """The tokens in which the texts differ from the prompt; where an answer changes how the prompt's end is cut into
        tokens, from there on, for all alike."""
        tokenized = self.processor.tokenizer([prompt, *texts], add_special_tokens=False)["input_ids"]
        shared = min(_common(tokenized[0], ids) for ids in tokenized[1:])
        return [ids[shared:] for ids in tokenized[1:]]

    @torch.inference_mode()
    def _row_likelihoods(
        self, prompt: WrittenPrompt, texts: Sequence[str], tails: Sequence[list[int]]
    ) -> list[Likelihood]:
        inputs = self._inputs([prompt] * len(texts), texts, 0)
        longest = max(map(len, tails))
        keeps = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        logits: Tensor = self.model(**inputs, **({"logits_to_keep": longest + 1} if keeps else {})).logits
        rounding = self.rounding * TYPICAL_LOGIT
        found = []
        for row, tail in enumerate(tails):
            ids = torch.tensor(tail, device=logits.device)
            if not torch.equal(inputs["input_ids"][row, -len(tail) :], ids):
                raise FlamingoError(
                    f"{type(self.processor).__name__} writes an answer's tokens otherwise within a prompt, so that answers "
                    "cannot be ranked; choose a style that generates"
                )
            before = logits[row, -len(tail) - 1 : -1].float().log_softmax(-1)  # (t v)
            score = float(before.gather(-1, ids[:, None]).sum())
            found.append(Likelihood(score, len(tail), rounding * len(tail)))
        return found


def prompt_at(written: Sequence[WrittenPrompt | GenerationFailure], place: int) -> WrittenPrompt:
    prompt = written[place]
    assert isinstance(prompt, WrittenPrompt)
    return prompt


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens the two begin with alike."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))
