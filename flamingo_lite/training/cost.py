"""What answering costs a trained model: arithmetic, time and memory, of a prompt and of each token after it, measured.

A prompt is answered with few and with many tokens; the difference is what the tokens cost, the rest the prompt's cost.
"""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from flamingo_lite.document import Document
from flamingo_lite.generation.generate import generate
from flamingo_lite.generation.prompts import evaluating
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.parts import CACHE
from flamingo_lite.nn.cache import MediaCache
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.training.flops import FlopsByPart
from flamingo_lite.training.live_bytes import LiveBytes

FEW, MANY = 1, 9
REPEATS = 3


@dataclass(frozen=True)
class Cost:
    """Of one prompt at a time, the mean over prompts; a multiply-add counts as two operations.

    `prompt_*`: until the first token is there, images included; `token_*`: of each token after it. `prompt_bytes`:
    the most that lives at once beside the weights; `held_bytes`: what stays for the tokens to come (keys, values, media
    tokens); `token_bytes`: by how much that grows with a token. `positions`: of the language model, in a prompt.
    """

    prompt_flops: float
    prompt_seconds: float
    prompt_bytes: float
    held_bytes: float
    token_flops: float
    token_seconds: float
    token_bytes: float
    positions: float
    images: float


def measure_cost(
    model: VisionLanguageModel, processor: VisionLanguageProcessor, prompts: Sequence[Document]
) -> Cost:
    """The cost of answering `prompts`, on the device where the model is; seconds are those of the fastest of a few runs,
    which other work on the machine has disturbed least."""

    def answer(tokens: int) -> None:
        for prompt in prompts:
            # No text ends early: what a token costs must not hang on what a model has to say.
            generate(model, processor, [prompt], tokens, min_new_tokens=tokens)

    few, many = (_measured(lambda tokens=tokens: answer(tokens)) for tokens in (FEW, MANY))
    steps = MANY - FEW
    flops, seconds = ((after - before) / steps for before, after in zip(few, many, strict=True))
    peaks, held = zip(*(_bytes(model, processor, prompt) for prompt in prompts), strict=True)
    _, grown = zip(*(_bytes(model, processor, prompt, steps) for prompt in prompts), strict=True)
    number = len(prompts)
    return Cost(
        prompt_flops=few[0] / number,
        prompt_seconds=few[1] / number,
        prompt_bytes=sum(peaks) / number,
        held_bytes=sum(held) / number,
        token_flops=flops / number,
        token_seconds=seconds / number,
        token_bytes=(sum(grown) - sum(held)) / number / steps,
        positions=sum(len(processor.encode(prompt)) for prompt in prompts) / number,
        images=sum(len(prompt.images) for prompt in prompts) / number,
    )


def _measured(run: Callable[[], None]) -> tuple[float, float]:
    """(operations, seconds) of `run`. Counting slows it down, so that it is timed apart."""
    with FlopsByPart({}) as counter:
        run()
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return float(sum(counter.flops.values())), min(times)


def _bytes(
    model: VisionLanguageModel, processor: VisionLanguageProcessor, prompt: Document, more: int = 0
) -> tuple[int, int]:
    """The most bytes alive while the prompt runs, and those that stay; with `more` tokens behind it."""
    batch = processor([prompt])
    ids, mask, index = (batch[name] for name in ("input_ids", "attention_mask", "media_index"))
    if more:
        ids, mask, index = (torch.cat((t, t[:, -1:].expand(-1, more)), dim=1) for t in (ids, mask, index))
    ids, mask, index, pixels = (t.to(model.device) for t in (ids, mask, index, batch["pixel_values"]))
    media = MediaCache(pixel_values=pixels)
    ignored = [*model.parameters(), *model.buffers(), ids, mask, index, pixels]
    with evaluating(model), LiveBytes(ignored) as live:
        past = model(
            ids, attention_mask=mask, media_index=index, media=media, use_cache=True, logits_to_keep=1
        )[CACHE]
        gc.collect()
        held = live.activations
        del past
    return live.most_activations, held
