"""The time of a generated token after many images: ours, the language model alone, OpenFlamingo and IDEFICS.

    python benchmarks/decoding.py

gives every peer the weights of a model of ours (or ours those of the peer), compares logits, times the sides in turns, and
writes `decoding.json` and `decoding.md` beside this file. `--help` lists the sizes.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pairing
import torch
from decoding_sides import (
    CACHES,
    LATENTS,
    SMALL_TEXT,
    TEXT,
    Decoding,
    bare,
    generated,
    idefics_side,
    open_flamingo_side,
    our_model,
    ours,
    pixels_of,
    prompt_of,
)
from pairing import in_turns, median_with_interval, ratio, said, table, times
from peers import bare_language, idefics, open_flamingo
from torch import Tensor

from flamingo_lite.nn.cache import MediaCache
from flamingo_lite.training.rates import read_rate

OURS, BARE = "flamingo_lite", "language model alone"
OPEN_FLAMINGO, IDEFICS = "OpenFlamingo 2.0.1", "IdeficsForVisionText2Text"
TOLERANCE = 1e-4  # of logits that reach from about -2 to 2
IDEFICS_VISION = {
    "embed_dim": 768, "image_size": 224, "patch_size": 32, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12,
}  # fmt: skip
SMALL_IDEFICS_VISION = {
    "embed_dim": 64, "image_size": 32, "patch_size": 16, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2,
}  # fmt: skip


def compare(sides: Mapping[str, Decoding], peers: tuple[str, ...], options: argparse.Namespace) -> float:
    """How far apart logits are after the same tokens."""
    furthest = 0.0
    for token in range(3, 7):
        ids = torch.tensor([[token]], device=options.device)
        own = sides[OURS].logits(ids)
        for name in peers:
            apart = pairing.refuse_apart(name, own, sides[name].logits(ids), TOLERANCE)
            furthest = max(furthest, apart)
    return furthest


def timed(
    sides: Mapping[str, Decoding], against: str, options: argparse.Namespace, peers: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Seconds of a token of each side, and how many times as long each takes as `against`."""
    apart = compare(sides, peers, options) if peers else None
    calls = {name: partial(side.write, options.tokens) for name, side in sides.items()}
    rounds = {
        name: [value / options.tokens for value in values]
        for name, values in in_turns(calls, options.rounds, options.device).items()
    }
    return {"furthest_apart": apart, **summary(rounds, against)}


def summary(rounds: Mapping[str, list[float]], against: str) -> dict[str, Any]:
    return {
        "seconds": {name: median_with_interval(values) for name, values in rounds.items()},
        "against": against,
        "ratios": {name: ratio(rounds, name, against) for name in rounds if name != against},
        "rounds": rounds,
    }


def every_layer(options: argparse.Namespace) -> dict[str, Any]:
    """Ours, the language model alone and OpenFlamingo, a block before every layer; and ours by number of images."""
    model = our_model(1, options.small, options.device)
    language = bare_language(model).to(options.device)
    theirs = open_flamingo(model)[0].eval().requires_grad_(False).to(options.device)
    image = model.config.image_token_id
    pixels = pixels_of(max(options.most_images, options.images), model.vision.image_size[0], options.device)
    media = torch.cat([model.encode_images(some) for some in pixels.split(16)])
    words = model.config.first_new_token

    def prompt(images: int) -> Tensor:
        return prompt_of(options.context, images, words, image, options.device)

    def own(images: int, cache: str) -> Decoding:
        made = CACHES[cache](model.language.config, options.context)
        return Decoding(ours(model, media[:images], prompt(images)), made, prompt(images))

    found: dict[str, Any] = {}
    for cache, make in CACHES.items():
        text = prompt(options.images)
        peer = open_flamingo_side(theirs, pixels[: options.images])
        sides = {
            BARE: Decoding(bare(language), make(language.config, options.context), text),
            OURS: own(options.images, cache),
            OPEN_FLAMINGO: Decoding(peer, make(theirs.lang_encoder.config, options.context), text),
        }
        found[f"every layer, {cache}"] = timed(sides, BARE, options, (OPEN_FLAMINGO,))
        rounds = found[f"every layer, {cache}"]["rounds"]
        found[f"every layer, {cache}"]["ours_over"] = {OPEN_FLAMINGO: ratio(rounds, OPEN_FLAMINGO, OURS)}
    numbers = sorted({1, options.most_images // 8, options.images, options.most_images})
    by_images = {f"{number} images": own(number, "static") for number in numbers}
    found["by images"] = timed(by_images, "1 images", options)
    found["generate"] = by_generate(model, language, media, prompt(options.images), options)
    found["floor, every layer"] = floor(model, language, options)
    return found


def by_generate(
    model: Any, language: Any, media: Tensor, prompt: Tensor, options: argparse.Namespace
) -> dict[str, Any]:
    """Through the models' own `generate`, from a prompt that leaves room for the new tokens."""
    cut = prompt[:, options.tokens :]
    index = (cut == model.config.image_token_id).long().cumsum(1) - 1
    # Images that were cut away are still there; positions read those that follow.
    index = torch.where(index >= 0, index + len(media) - 1 - int(index.max()), index)
    rounds: dict[str, list[float]] = {BARE: [], OURS: []}
    for _ in range(max(3, options.rounds // 3)):
        given = {"media": MediaCache(media=media), "media_index": index}
        for name, of, more in ((BARE, language, {}), (OURS, model, given)):
            seconds = generated(of, cut, options.tokens, **more)
            rounds[name].append(median_with_interval(seconds)["median"])
    return summary(rounds, BARE)


def every_fourth(options: argparse.Namespace) -> dict[str, Any]:
    model = our_model(2 if options.small else 4, options.small, options.device)
    language = bare_language(model).to(options.device)
    words, image = model.config.first_new_token, model.config.image_token_id
    media = torch.randn(options.images, LATENTS, model.connector.width, device=options.device)
    prompt = prompt_of(options.context, options.images, words, image, options.device)
    found = {}
    for cache, make in CACHES.items():
        sides = {
            BARE: Decoding(bare(language), make(language.config, options.context), prompt),
            OURS: Decoding(ours(model, media, prompt), make(model.language.config, options.context), prompt),
        }
        found[f"every fourth layer, {cache}"] = timed(sides, BARE, options)
    return {**found, "floor, every fourth layer": floor(model, language, options)}


def beside_idefics(options: argparse.Namespace) -> dict[str, Any]:
    text, vision = (SMALL_TEXT, SMALL_IDEFICS_VISION) if options.small else (TEXT, IDEFICS_VISION)
    theirs, model = (part.to(options.device) for part in idefics(text, vision))
    pixels = pixels_of(options.images, vision["image_size"], options.device)
    media = model.encode_images(pixels)
    image = model.config.image_token_id
    prompt = prompt_of(options.context, options.images, text["vocab_size"], image, options.device)
    found = {}
    for cache, make in CACHES.items():
        sides = {
            OURS: Decoding(ours(model, media, prompt), make(model.language.config, options.context), prompt),
            IDEFICS: Decoding(
                idefics_side(theirs, media, prompt), make(theirs.config, options.context), prompt
            ),
        }
        found[f"IDEFICS, {cache}"] = timed(sides, OURS, options, (IDEFICS,))
    return found


def floor(model: Any, language: Any, options: argparse.Namespace) -> dict[str, float]:
    """Bytes of weights that a step reads: all of the language model but the rows of embeddings that it does not look up,
    and of each block all but the projections of images; and what reading the former takes at this machine's rate."""
    embedding = language.get_input_embeddings().weight
    alone = sum(p.nbytes for p in language.parameters()) - embedding.nbytes
    blocks = sum(
        p.nbytes
        for block in model.blocks.values()
        for name, p in block.named_parameters()
        if not name.startswith("attention.to_kv.")
    )
    return {
        "bytes": alone,
        "ratio": (alone + blocks) / alone,
        "seconds": alone / read_rate(options.device),
    }


PARTS: tuple[Callable[[argparse.Namespace], dict[str, Any]], ...] = (
    every_layer,
    every_fourth,
    beside_idefics,
)


@torch.no_grad()
def results(options: argparse.Namespace) -> dict[str, Any]:
    found = pairing.provenance("decoding", options)
    for part in PARTS:
        found |= part(options)
        gc.collect()
    return found


def rows_of(what: str, part: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name, seconds in part["seconds"].items():
        of = times(part["ratios"][name]) if name in part["ratios"] else ""
        rows.append([what, name, f"{said(seconds, 2, 1e3)} ms", of])
    return rows


def markdown(found: dict[str, Any], options: argparse.Namespace) -> str:
    names = [f"{blocks}, {cache}" for blocks in ("every layer", "every fourth layer") for cache in CACHES]
    rows = [row for name in names for row in rows_of(name, found[name])]
    rows += rows_of("every layer, `generate`", found["generate"])
    idefics_rows = [row for cache in CACHES for row in rows_of(f"{cache}", found[f"IDEFICS, {cache}"])]
    apart = {
        "flamingo": max(found[f"every layer, {cache}"]["furthest_apart"] for cache in CACHES),
        "idefics": max(found[f"IDEFICS, {cache}"]["furthest_apart"] for cache in CACHES),
    }
    return TEXT_OF_PAGE.format(
        table=table(("blocks, cache", "code", "a token", "of the language model alone"), rows),
        images=table(("", "images", "a token", "of one image"), rows_of("", found["by images"])),
        idefics=table(("cache", "code", "a token", "of ours"), idefics_rows),
        ours={cache: times(found[f"every layer, {cache}"]["ours_over"][OPEN_FLAMINGO]) for cache in CACHES},
        apart=apart,
        found=found,
        options=options,
        made=pairing.made(found),
        floor=found["floor, every layer"],
        fourth=found["floor, every fourth layer"],
        milliseconds=1e3 * found["floor, every layer"]["seconds"],
    )


TEXT_OF_PAGE = """# The time of a generated token

Written by `{found[command]}`; do not edit.

One row, a context of {options.context:,} positions, {options.images} images in it:

{table}

Ours is {ours[static]} as fast as OpenFlamingo with static caches, {ours[growing]} with growing ones.

By the number of images, static caches, a block before every layer:

{images}

Beside `IdeficsForVisionText2Text`, with its weights, a block before every layer, {options.images} images:

{idefics}

{options.note}

{made} Medians over {options.rounds} rounds of {options.tokens} tokens, the sides in turns; ratios are medians of the
rounds' ratios, intervals are 95% bootstrap intervals of the medians. A token is a forward pass at a fixed context and the
choice of the largest logit; `generate` is transformers' own loop around both.

- **The same work**: float32, random weights, open gates. Logits after the same tokens have to agree to 1e-4 before
  anything is timed; they are {apart[flamingo]:.1e} (OpenFlamingo) and {apart[idefics]:.1e} (IDEFICS) apart.
- **The models**: ViT-B/32, 64 latents an image, a Llama of six layers, width 512 and feed-forward width 2,048, 32,002
  words (with `--small` all is tiny, for a test).
- **The peers at their best**: images are encoded once and handed in as they need them (IDEFICS' own `generate` would run its
  resampler at every token), the language model's cache is on, no gradients. Both project the images' keys and values again
  in every layer, at every token.
- **Limits**: weights that a token reads are {floor[ratio]:.2f} times the language model's with a block before every layer,
  {fourth[ratio]:.2f} times with one before every fourth; at the rate at which this machine multiplies a matrix that is in
  no cache, the language model's own take {milliseconds:.1f} ms.
"""


def main() -> None:
    parser = pairing.parser(__doc__, rounds=31)
    parser.add_argument("--images", type=int, help="32, or 4 with --small")
    parser.add_argument("--most-images", type=int, help="64, or 8 with --small")
    parser.add_argument("--context", type=int, help="1,024, or 64 with --small")
    parser.add_argument("--tokens", type=int, default=4, help="of a side in a round")
    options = parser.parse_args()
    pairing.fill_sizes(options, images=(32, 4), most_images=(64, 8), context=(1024, 64))
    found = results(options)
    pairing.write(options.output, "decoding", found, markdown(found, options))


if __name__ == "__main__":
    main()
