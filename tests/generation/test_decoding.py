"""transformers' ways of decoding on a joined model, each against a plain loop over full forwards."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, TextIteratorStreamer, TextStreamer

from flamingo_lite.document import Document, Image
from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.processing import VisionLanguageProcessor

Joined = tuple[VisionLanguageModel, VisionLanguageProcessor]

NEW = 4
ENDLESS: dict[str, Any] = {"max_new_tokens": NEW, "eos_token_id": None}
GREEDY = {**ENDLESS, "do_sample": False}


@pytest.fixture
def documents(image_of: Callable[[int], Image]) -> list[Document]:
    """Rows of three, no and one image, so that all but the first are padded on the left."""
    one, two, three = (image_of(i) for i in range(3))
    return [Document([one, "ab", two, "c", three]), Document(["no image"]), Document([two, "abc"])]


@contextmanager
def counted(model: VisionLanguageModel) -> Iterator[dict[str, int]]:
    """How many images the vision encoder, the connector and each block's key-value projection have seen."""
    seen: dict[str, int] = {}

    def count(name: str) -> Any:
        seen[name] = 0

        def hook(module: Any, inputs: tuple[Tensor, ...]) -> None:
            seen[name] += len(inputs[0])

        return hook

    parts = {"vision": model.vision, "connector": model.connector}
    parts |= {f"block {i}": block.attention.to_kv for i, block in model.blocks.items()}
    handles = [part.register_forward_pre_hook(count(name)) for name, part in parts.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def next_log_probabilities(joined: Joined, document: Document, written: list[int]) -> Tensor:
    """(v) of the token after the document and `written`: one full forward, no cache, no padding."""
    model, processor = joined
    prompt = processor([document])
    more = torch.tensor([written], dtype=torch.int64)
    ids = torch.cat((prompt.input_ids, more), dim=1)
    index = torch.cat((prompt.media_index, prompt.media_index[:, -1:].expand_as(more)), dim=1)
    with torch.no_grad():
        logits = model(ids, pixel_values=prompt.pixel_values, media_index=index).logits[0, -1]
    logits[model.config.image_token_id] = -torch.inf
    return logits.log_softmax(-1)


def greedy(joined: Joined, document: Document) -> list[int]:
    written: list[int] = []
    for _ in range(NEW):
        written.append(int(next_log_probabilities(joined, document, written).argmax()))
    return written


def beam_search(joined: Joined, document: Document, beams: int) -> list[int]:
    """The likeliest of the `beams` sequences that survive each step; all end at the same length."""
    alive: list[tuple[float, list[int]]] = [(0.0, [])]
    for _ in range(NEW):
        grown = []
        for score, written in alive:
            best = next_log_probabilities(joined, document, written).topk(beams)
            for value, token in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                grown.append((score + value, [*written, token]))
        alive = sorted(grown, key=lambda item: -item[0])[:beams]
    return alive[0][1]


def new_tokens(joined: Joined, documents: list[Document], **options: Any) -> list[list[int]]:
    model, processor = joined
    prompt = processor(documents)
    return model.generate(**prompt, **options)[:, prompt.input_ids.shape[1] :].tolist()


def test_greedy_equals_full_forwards_of_each_row_alone(joined: Joined, documents: list[Document]) -> None:
    assert new_tokens(joined, documents, **GREEDY) == [greedy(joined, document) for document in documents]


@pytest.mark.parametrize("beams", [2, 4])
def test_beams_equal_a_search_by_full_forwards(joined: Joined, documents: list[Document], beams: int) -> None:
    expected = [beam_search(joined, document, beams) for document in documents]
    assert new_tokens(joined, documents, **GREEDY, num_beams=beams) == expected


def test_samples_of_one_seed_are_those_drawn_from_full_forwards(
    joined: Joined, documents: list[Document]
) -> None:
    options = {**ENDLESS, "do_sample": True, "top_k": 0, "temperature": 0.7}
    torch.manual_seed(5)
    drawn = new_tokens(joined, documents, **options)
    torch.manual_seed(5)
    written: list[list[int]] = [[] for _ in documents]
    for _ in range(NEW):
        rows = zip(documents, written, strict=True)
        scores = torch.stack([next_log_probabilities(joined, document, row) for document, row in rows])
        tokens = torch.multinomial((scores / 0.7).softmax(-1), 1)
        for row, token in zip(written, tokens.flatten().tolist(), strict=True):
            row.append(token)
    assert drawn == written


def test_beam_samples_of_one_seed_need_no_cache(joined: Joined, documents: list[Document]) -> None:
    drawn = []
    for use_cache in (True, False):
        torch.manual_seed(5)
        options = {**ENDLESS, "do_sample": True, "num_beams": 3, "use_cache": use_cache}
        drawn.append(new_tokens(joined, documents, **options))
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"do_sample": True, "num_return_sequences": 3}])
def test_images_are_encoded_and_projected_once(
    joined: Joined, documents: list[Document], options: dict[str, Any]
) -> None:
    with counted(joined[0]) as seen:
        new_tokens(joined, documents, **{**GREEDY, **options})
    assert set(seen.values()) == {4}


def test_a_static_cache_gives_the_greedy_text(joined: Joined, documents: list[Document]) -> None:
    expected = [greedy(joined, document) for document in documents]
    assert new_tokens(joined, documents, **GREEDY, cache_implementation="static") == expected


def test_prompt_lookup_gives_the_greedy_text(joined: Joined, image_of: Callable[[int], Image]) -> None:
    # Everything stands twice, so that there is something to look up.
    document = Document([image_of(0), "abab", image_of(1), "abab"])
    expected = [greedy(joined, document)]
    # An end that is never written: transformers 5.10 looks up nothing without one.
    options = {**GREEDY, "eos_token_id": joined[0].config.image_token_id}
    assert new_tokens(joined, [document], **options, prompt_lookup_num_tokens=2) == expected


@pytest.mark.parametrize("is_good", [True, False], ids=["itself", "another"])
def test_an_assistant_model_gives_the_greedy_text(
    joined: Joined, documents: list[Document], is_good: bool
) -> None:
    assistant = copy.deepcopy(joined[0])
    if not is_good:
        with torch.no_grad():
            for parameter in assistant.language.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    for document in documents:
        # Ends in text: a rejected draft is taken up one token before the prompt's end, which must cut no image.
        asked = Document([*document, "?"])
        written = new_tokens(joined, [asked], **GREEDY, assistant_model=assistant)
        assert written == [greedy(joined, asked)]


def test_a_streamer_is_handed_the_greedy_text_as_it_is_written(
    joined: Joined, documents: list[Document]
) -> None:
    model, processor = joined
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, timeout=60)
    options = {**processor(documents[:1]), **GREEDY, "streamer": streamer}
    thread = threading.Thread(target=model.generate, kwargs=options)
    thread.start()
    parts = list(streamer)
    thread.join()
    assert "".join(parts) == processor.tokenizer.decode(greedy(joined, documents[0]))


def test_a_printing_streamer_prints_the_greedy_text(
    joined: Joined, documents: list[Document], capsys: pytest.CaptureFixture[str]
) -> None:
    model, processor = joined
    streamer = TextStreamer(processor.tokenizer, skip_prompt=True)
    model.generate(**processor(documents[:1]), **GREEDY, streamer=streamer)
    assert capsys.readouterr().out == processor.tokenizer.decode(greedy(joined, documents[0])) + "\n"


def test_a_stop_string_ends_its_row_alone(joined: Joined, documents: list[Document]) -> None:
    model, processor = joined
    texts = [greedy(joined, document) for document in documents]
    written = [processor.tokenizer.decode(token) for text in texts for token in text]
    # Bytes that are no text by themselves all look the same when decoded, and would match each other.
    stop = next(character for character in written if character.isascii())
    prompt = processor(documents)
    # A row that has stopped is padded only where an end token is known.
    options = {**GREEDY, "eos_token_id": 257, "pad_token_id": 258, "tokenizer": processor.tokenizer}
    out = model.generate(**prompt, **options, stop_strings=[stop])[:, prompt.input_ids.shape[1] :].tolist()
    for row, text in zip(out, texts, strict=True):
        end = next((i + 1 for i in range(NEW) if stop in processor.tokenizer.decode(text[: i + 1])), NEW)
        assert row[:end] == text[:end] and all(token == 258 for token in row[end:])


def test_no_time_is_time_for_one_token(joined: Joined, documents: list[Document]) -> None:
    expected = [greedy(joined, document)[:1] for document in documents]
    assert new_tokens(joined, documents, **GREEDY, max_time=0.0) == expected


@pytest.mark.parametrize(
    "options, named",
    [
        ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha=0.6 asks for contrastive search"),
        ({"generation_config": GenerationConfig(penalty_alpha=0.6, top_k=4)}, "asks for contrastive search"),
        ({"dola_layers": "low"}, "dola_layers='low' asks for DoLa"),
        ({"num_beams": 4, "num_beam_groups": 2}, "num_beam_groups=2 asks for group beam search"),
        ({"num_beams": 4, "force_words_ids": [[5]]}, "asks for constrained beam search"),
        ({"custom_generate": "some/where"}, "'some/where'.*never run"),
        ({"trust_remote_code": True}, "trust_remote_code=True: code from elsewhere is never run"),
        ({"guidance_scale": 1.5}, "guidance_scale runs a second prompt"),
        ({"assistant_early_exit": 1}, "assistant_early_exit drafts"),
    ],
)
def test_what_cannot_be_decoded_is_refused_by_name(
    joined: Joined, documents: list[Document], options: dict[str, Any], named: str
) -> None:
    with pytest.raises(FlamingoError, match=named):
        joined[0].generate(**joined[1](documents), **options)


def test_an_assistant_without_eyes_is_refused(
    joined: Joined, documents: list[Document], language_directory: Any
) -> None:
    model, processor = joined
    blind = AutoModelForCausalLM.from_pretrained(language_directory)
    with pytest.raises(FlamingoError, match="assistant_model is a LlamaForCausalLM"):
        model.generate(**processor(documents[:1]), assistant_model=blind)


def test_an_assistant_is_not_given_what_another_encoder_saw(
    joined: Joined, documents: list[Document]
) -> None:
    model, processor = joined
    fields = dict(processor(documents[:1]))
    media = model._images(fields.pop("pixel_values"), fields["media_index"])
    with pytest.raises(FlamingoError, match="give pixel_values instead"):
        model.generate(**fields, media=media, assistant_model=copy.deepcopy(model))


def test_continuous_batching_is_refused(joined: Joined) -> None:
    with pytest.raises(FlamingoError, match="continuous batching"):
        joined[0].generate_batch(inputs=[[1, 2, 3]])
