"""generate and score over many documents: the same as one by one, with every image encoded once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from transformers.utils import logging

import flamingo_lite as fl
from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.training import cost


@pytest.fixture
def documents(image_of: Callable[[int], Image]) -> list[Document]:
    """Lengths and numbers of images differ; three distinct images, one of them in four documents."""
    one, two, three = (image_of(i) for i in range(3))
    return [
        Document([one, " = 8", two, " ="]),
        Document(["no image"]),
        Document([two, "abc"]),
        Document([three, one, two, " some words ", two]),
        Document([two, "abd"]),
    ]


@contextmanager
def counted(model: VisionLanguageModel) -> Iterator[dict[str, int]]:
    """Images that the vision encoder and the first block's key-value projection have seen."""
    seen = {"encoded": 0, "projected": 0}

    def count(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            seen[name] += len(inputs[0])

        return hook

    handles = [
        model.vision.register_forward_pre_hook(count("encoded")),
        model.blocks[0].attention.to_kv.register_forward_pre_hook(count("projected")),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_batches_change_no_text_and_no_order(
    model: VisionLanguageModel,
    processor: VisionLanguageProcessor,
    documents: list[Document],
    batch_size: int,
) -> None:
    together = fl.generate(model, processor, documents, max_new_tokens=5, batch_size=batch_size)
    assert together == [fl.generate(model, processor, [d], max_new_tokens=5)[0] for d in documents]
    assert len(set(together)) > 1


def test_it_writes_what_the_models_own_generate_writes(
    model: VisionLanguageModel, processor: VisionLanguageProcessor, documents: list[Document]
) -> None:
    for document, text in zip(
        documents, fl.generate(model, processor, documents, max_new_tokens=5, stop=None), strict=True
    ):
        prompt = processor([document])
        out = model.generate(**prompt, max_new_tokens=5, do_sample=False, eos_token_id=256)
        new = out[0, prompt.input_ids.shape[1] :]
        assert processor.tokenizer.decode(new, skip_special_tokens=True) == text


@pytest.mark.parametrize("batch_size", [1, 64])
def test_every_distinct_image_is_encoded_and_projected_once_over_the_call(
    model: VisionLanguageModel,
    processor: VisionLanguageProcessor,
    documents: list[Document],
    batch_size: int,
) -> None:
    with counted(model) as seen:
        fl.generate(model, processor, documents, max_new_tokens=4, batch_size=batch_size)
    assert seen == {"encoded": 3, "projected": 3}


def test_a_text_ends_where_its_chunk_ends(
    model: VisionLanguageModel, processor: VisionLanguageProcessor, documents: list[Document]
) -> None:
    end = processor.tokenizer.convert_tokens_to_ids("<|endofchunk|>")
    whole = fl.generate(model, processor, documents, max_new_tokens=6)
    text = whole[2]
    # The tied column of <|endofchunk|> wins everywhere: nothing is written before it.
    with torch.no_grad():
        prompt = processor([documents[2]])
        hidden = model(**prompt, output_hidden_states=True).hidden_states[-1][0, -1]
        model.get_input_embeddings().weight[end] = 100 * hidden
    assert fl.generate(model, processor, documents[2:3], max_new_tokens=6) == [""]
    assert text != ""


def first_token(model: VisionLanguageModel, processor: VisionLanguageProcessor, document: Document) -> int:
    """The id that the model writes first."""
    prompt = processor([document])
    fields = {name: prompt[name] for name in ("input_ids", "attention_mask", "pixel_values", "media_index")}
    return int(model.generate(**fields, max_new_tokens=1, do_sample=False)[0, -1])


def test_a_text_ends_at_every_token_that_the_model_or_the_template_ends_at(
    model: VisionLanguageModel, processor: VisionLanguageProcessor, documents: list[Document]
) -> None:
    assert fl.generate(model, processor, documents[2:3], max_new_tokens=6) != [""]
    first = first_token(model, processor, documents[2])
    model.generation_config.eos_token_id = [processor.tokenizer.eos_token_id, first]
    assert fl.generate(model, processor, documents[2:3], max_new_tokens=6) == [""]


def test_tokens_that_the_generation_config_suppresses_stay_suppressed(
    model: VisionLanguageModel, processor: VisionLanguageProcessor, documents: list[Document]
) -> None:
    first = first_token(model, processor, documents[2])
    model.generation_config.suppress_tokens = [first]
    assert first_token(model, processor, documents[2]) != first


def test_beams_and_training_mode_are_left_as_they_were(
    model: VisionLanguageModel, processor: VisionLanguageProcessor, documents: list[Document]
) -> None:
    model.train()
    one = fl.generate(model, processor, documents, max_new_tokens=3, num_beams=2)
    assert model.training and not model.vision.training
    assert one == fl.generate(model, processor, documents, max_new_tokens=3, num_beams=2, batch_size=1)


def test_a_prompt_that_does_not_fit_is_named(
    model: VisionLanguageModel, processor: VisionLanguageProcessor, documents: list[Document]
) -> None:
    long = Document(["x" * 250])
    prompt = len(processor.encode(long))
    assert len(fl.generate(model, processor, [long], max_new_tokens=256 - prompt, stop=None)) == 1
    with pytest.raises(FlamingoError, match=rf"document 5: its prompt has {prompt} tokens.*context is 256"):
        fl.generate(model, processor, [*documents, long], max_new_tokens=257 - prompt)


def test_nothing_to_do_is_an_empty_list(
    model: VisionLanguageModel, processor: VisionLanguageProcessor
) -> None:
    assert fl.generate(model, processor, []) == []


@pytest.mark.parametrize("options", [{"max_new_tokens": 0}, {"batch_size": 0}, {"num_return_sequences": 2}])
def test_bad_options_are_refused(
    model: VisionLanguageModel,
    processor: VisionLanguageProcessor,
    documents: list[Document],
    options: dict[str, int],
) -> None:
    with pytest.raises(FlamingoError):
        fl.generate(model, processor, documents, **options)


CANDIDATES = ["yes", "no", Text("y", ends_chunk=True), "a longer one"]


@pytest.mark.parametrize("candidates", [CANDIDATES, ["a", "b"]], ids=["long", "one token each"])
def test_scores_are_the_log_probabilities_of_full_recomputation(
    model: VisionLanguageModel,
    processor: VisionLanguageProcessor,
    documents: list[Document],
    candidates: list[str | Text],
) -> None:
    scores = fl.score(model, processor, documents, candidates, batch_size=6)
    for row, document in zip(scores, documents, strict=True):
        start = len(processor.encode(document))
        for found, candidate in zip(row, candidates, strict=True):
            batch = processor([Document([*document, candidate])])
            logp = model(**batch).logits[0, :-1].log_softmax(-1)
            expected = logp.gather(1, batch.input_ids[0, 1:, None])[start - 1 :].sum()
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_scoring_encodes_every_image_once(
    model: VisionLanguageModel, processor: VisionLanguageProcessor, documents: list[Document]
) -> None:
    with counted(model) as seen:
        fl.score(model, processor, documents, CANDIDATES, batch_size=1)
    assert seen == {"encoded": 3, "projected": 3}


@pytest.mark.parametrize("candidates", [[], ["yes", ""]])
def test_candidates_without_tokens_are_refused(
    model: VisionLanguageModel,
    processor: VisionLanguageProcessor,
    documents: list[Document],
    candidates: list[str],
) -> None:
    with pytest.raises(FlamingoError, match="candidate"):
        fl.score(model, processor, documents, candidates)


def test_nothing_is_called_by_a_name_that_transformers_has_given_up(
    joined: tuple[VisionLanguageModel, VisionLanguageProcessor],
    image_of: Callable[[int], Image],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    monkeypatch.setattr(logging.get_logger("transformers.utils.generic"), "warning_once", said.append)
    prompts = [Document([image_of(1), Text(" = 8", ends_chunk=True), image_of(i), " ="]) for i in (2, 3)]
    monkeypatch.setattr(cost, "REPEATS", 1)
    fl.generate(*joined, prompts, max_new_tokens=2)
    fl.score(*joined, prompts, candidates=[" 7", " 18", " 19"])
    cost.measure_cost(*joined, prompts[:1])
    assert said == []
