"""Our models as models of lmms-eval: `python -m lmms_eval --model flamingo_lite --model_args pretrained=DIRECTORY`.

Prompts are answered by what our own runner answers them with: in batches, each image encoded once, choices closer than
rounding made alone.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms

from flamingo_lite.checkpoints.io import load
from flamingo_lite.data.stores import parse_bytes
from flamingo_lite.document import Document, Text
from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.answering import ModelAnswers
from flamingo_lite.evaluation.answers import Written
from flamingo_lite.evaluation.lmms.prompts import (
    is_ours,
    marked_document,
    our_document,
    said_document,
    without_roles,
)
from flamingo_lite.evaluation.lmms.samples import candidates_of, sample_of
from flamingo_lite.evaluation.metrics import GenerationFailure
from flamingo_lite.evaluation.ranking import Likelihood, Ranked, choose
from flamingo_lite.evaluation.rendering import RENDERINGS, rendered_answer
from flamingo_lite.evaluation.scoring import cut
from flamingo_lite.names import check_choice
from flamingo_lite.text.turns import has_roles

BATCHES_AT_ONCE = 4
"""So many batches of prompts have their pictures in memory."""
DECODING = ("do_sample", "temperature", "top_p", "top_k", "num_beams")
"""What a task may say of decoding; of what else it says we know nothing."""


class FlamingoLite(lmms):
    """Takes prompts as a text with marks for images. `pretrained`: the directory of a model, ours or of a format that
    we read; `rendering`: how it is shown prompts, as `eval.rendering` (by default turns for a model with a conversation
    template, else interleaved); `max_new_tokens`: of an answer, where the task does not say.

    Errors: `FlamingoError` for a directory without a model and an unknown rendering. A prompt that cannot be answered
    ends the run: lmms-eval has no word for it, and no answer would be scored as a wrong one.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str | None = 1,
        device: str | None = None,
        rendering: str | None = None,
        max_new_tokens: int = 256,
        media_bytes: str = "4GB",
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        model, processor = load(pretrained)
        if rendering is None:
            rendering = "interleaved" if processor.template.conversation is None else "turns"
        check_choice("rendering", rendering, RENDERINGS)
        try:
            self.batch_size = int(batch_size or 1)
        except ValueError:
            raise FlamingoError(f"batch_size is {batch_size!r}; expected a number") from None
        self.rendering, self.max_new_tokens = rendering, max_new_tokens
        self.device = torch.device(device or _own_device())
        torch.nn.Module.to(model, self.device)
        self._bytes = parse_bytes(str(media_bytes), "media_bytes")
        self._processor, self._model = processor, model
        self._answers = ModelAnswers(model, processor, self.batch_size, self._bytes)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """A text for each request, cut before the first of its `until`."""
        found: dict[int, str] = {}
        # One call has the requests of all tasks of a run, each with its own settings.
        groups: dict[tuple[int, tuple[str, ...], tuple[tuple[str, Any], ...]], list[int]] = {}
        for i, request in enumerate(requests):
            settings = self._generation(request)
            longest = int(settings.get("max_new_tokens") or self.max_new_tokens)
            groups.setdefault((longest, _until(settings), _decoding(settings)), []).append(i)
        for (longest, until, options), places in groups.items():
            for chunk in self._chunks(places):
                documents = [self._document(requests[i]) for i in chunk]
                texts = self._generated(documents, longest, dict(options))
                for i, text in zip(chunk, texts, strict=True):
                    found[i] = cut(text, until)
        return [found[i] for i in range(len(requests))]

    def loglikelihood(self, requests: list[Instance]) -> list[Any]:
        """Of each continuation the mean loss of its tokens (lmms-eval chooses the least), and whether it is what greedy
        search writes. A bare pair would reach the task as a text in lmms-eval 0.7.3."""
        groups: dict[tuple[Any, ...], list[int]] = {}
        for i, request in enumerate(requests):
            if len(request.args) < 6:
                raise FlamingoError(
                    "lmms-eval asks for likelihoods without a prompt (acc_mutual_info); choose another metric"
                )
            context, _, _, doc_id, task, split = request.args
            groups.setdefault((task, split, doc_id, context), []).append(i)
        found: dict[int, Any] = {}
        for chunk in self._chunks(list(groups.values())):
            documents = [self._document(requests[places[0]]) for places in chunk]
            candidates = [[self._candidate(requests[i]) for i in places] for places in chunk]
            likelihoods = self._likelihoods(documents, candidates)
            written = self._written(documents, likelihoods)
            for places, given, likely, texts in zip(chunk, candidates, likelihoods, written, strict=True):
                for i, candidate, each in zip(places, given, likely, strict=True):
                    loss = -each.log_probability / each.tokens
                    pair: Any = (loss, texts[each.tokens] == candidate.text)
                    found[i] = GenerationResult(pair)
        return [found[i] for i in range(len(requests))]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Errors: `FlamingoError`, always."""
        raise FlamingoError("tasks of several rounds are not for these models; choose one of a single answer")

    def _generation(self, request: Instance) -> dict[str, Any]:
        _, generation, *_ = request.args
        return generation

    def _document(self, request: Instance) -> Document:
        """The prompt as the model is shown it."""
        context, _, doc_to_visual, doc_id, task, split = request.args
        doc = self.task_dict[task][split][doc_id]
        visuals = (doc_to_visual(doc) if doc_to_visual is not None else None) or []
        asked = our_document(doc, visuals) if is_ours(doc) else marked_document(context, visuals)
        return RENDERINGS[self.rendering](asked)

    def _candidate(self, request: Instance) -> Text:
        """The continuation as it is ranked: one of our own tasks says whether it ends there."""
        _, continuation, _, doc_id, task, split = request.args
        doc = self.task_dict[task][split][doc_id]
        text = continuation if isinstance(continuation, str) else str(continuation(doc))
        own = candidates_of(sample_of(doc)) if is_ours(doc) else []
        candidate = next((each for each in own if each.text == text), Text(text))
        return rendered_answer(self.rendering, candidate)

    def _chunks(self, places: Sequence[Any]) -> Iterator[Sequence[Any]]:
        at_once = self.batch_size * BATCHES_AT_ONCE
        for start in range(0, len(places), at_once):
            yield places[start : start + at_once]

    def _generated(
        self, documents: Sequence[Document], max_new_tokens: int, options: dict[str, Any]
    ) -> list[str]:
        answers = self._answers
        if options:
            answers = ModelAnswers(
                self._model, self._processor, self.batch_size, self._bytes, options=options
            )
        found = answers.generate(documents, max_new_tokens)
        for i, each in enumerate(found):
            if isinstance(each, Written) and each.margin is not None and each.margin < 1:
                (found[i],) = answers.generate([documents[i]], max_new_tokens)
        return [each.text if isinstance(each, Written) else _answer(each) for each in found]

    def _likelihoods(
        self, documents: Sequence[Document], candidates: Sequence[Sequence[Text]]
    ) -> list[Sequence[Likelihood]]:
        found = self._answers.rank(documents, candidates)
        for i, each in enumerate(found):
            chosen = choose("per_token", candidates[i], each, None)
            if isinstance(chosen, Ranked) and chosen.margin is not None and chosen.margin < 1:
                (found[i],) = self._answers.rank([documents[i]], [candidates[i]])
        return [_answer(each) for each in found]

    def _written(
        self, documents: Sequence[Document], likelihoods: Sequence[Sequence[Likelihood]]
    ) -> list[dict[int, str]]:
        """What greedy search writes after each document, by the numbers of tokens that its candidates have."""
        texts: list[dict[int, str]] = [{} for _ in documents]
        for length in sorted({each.tokens for likely in likelihoods for each in likely}):
            places = [i for i, likely in enumerate(likelihoods) if any(e.tokens == length for e in likely)]
            found = self._generated([documents[i] for i in places], length, {})
            for i, text in zip(places, found, strict=True):
                texts[i][length] = text
        return texts


class FlamingoLiteChat(FlamingoLite):
    """Takes prompts as messages. lmms-eval asks such models for generated answers alone."""

    is_simple = False

    def _generation(self, request: Instance) -> dict[str, Any]:
        _, _, generation, *_ = request.args
        return generation

    def _document(self, request: Instance) -> Document:
        _, doc_to_messages, _, doc_id, task, split = request.args
        doc = self.task_dict[task][split][doc_id]
        messages = doc_to_messages(doc)
        if is_ours(doc):
            parts = [part for message in messages for part in message["content"]]
            visuals = [part["url"] for part in parts if part["type"] == "image"]
            return RENDERINGS[self.rendering](our_document(doc, visuals))
        said = said_document(messages)
        if self.rendering == "turns" or not has_roles(said):
            return said
        return RENDERINGS[self.rendering](without_roles(said))


def _own_device() -> str:
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}"


def _decoding(settings: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """What is not greedy search, as items: nothing where the task wants that."""
    chosen = {name: settings[name] for name in DECODING if settings.get(name) is not None}
    beams = int(chosen.get("num_beams", 1))
    if not chosen.get("do_sample"):
        return (("num_beams", beams),) if beams > 1 else ()
    return tuple(chosen.items())


def _until(settings: dict[str, Any]) -> tuple[str, ...]:
    """What ends a text."""
    until = settings.get("until") or ()
    return (until,) if isinstance(until, str) else tuple(until)


def _answer(found: Any) -> Any:
    if isinstance(found, GenerationFailure):
        raise FlamingoError(
            f"a prompt cannot be answered: {found.reason} (lmms-eval would score no answer as a wrong one)"
        )
    return found
