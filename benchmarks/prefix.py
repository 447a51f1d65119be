"""Prefix fusion beside `LlavaForConditionalGeneration` with the same weights: a forward pass, and generation.

    python benchmarks/prefix.py

loads our model from the directory that theirs was saved to, compares logits and generated ids, times the two in turns, and
writes `prefix.json` and `prefix.md` beside this file. `--help` lists the sizes.
Shape letters: b rows, t text positions, m images, v vocabulary.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import pairing
import torch
from decoding_sides import SMALL_TEXT, TEXT, pixels_of
from pairing import in_turns, median_with_interval, ratio, said, table, times
from peers import llava
from torch import Tensor

OURS, LLAVA = "flamingo_lite", "LlavaForConditionalGeneration"
TOLERANCE = 1e-4
VISION = {
    "hidden_size": 768, "image_size": 224, "patch_size": 32, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12,
}  # fmt: skip
SMALL_VISION = {
    "hidden_size": 64, "image_size": 32, "patch_size": 16, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 2,
}  # fmt: skip

Side = Callable[[], Tensor]


def batch_of(model: Any, rows: int, length: int) -> tuple[dict[str, Tensor], Tensor]:
    """What both read, one image a row behind its first token, and our media index (b t)."""
    generator, marks = torch.Generator().manual_seed(rows), model.connector.tokens
    ids = torch.randint(3, model.config.image_token_id, (rows, length), generator=generator)
    ids[:, 1 : 1 + marks] = model.config.image_token_id
    index = torch.arange(rows)[:, None].repeat(1, length)
    index[:, 0] = -1
    device = model.device
    common = {"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids).to(device)}
    return {
        **common,
        "pixel_values": pixels_of(rows, model.vision.image_size[0], str(device)),
    }, index.to(device)


def forward_sides(theirs: Any, model: Any, rows: int, options: argparse.Namespace) -> dict[str, Side]:
    """Encoding the images is in it."""
    batch, index = batch_of(model, rows, options.length)
    return {
        OURS: lambda: model(**batch, media_index=index).logits,
        LLAVA: lambda: theirs(**batch).logits,
    }


def generate_sides(theirs: Any, model: Any, rows: int, options: argparse.Namespace) -> dict[str, Side]:
    """The new ids (b tokens), greedy."""
    batch, index = batch_of(model, rows, options.prompt)
    tokens, image = options.tokens, model.config.image_token_id
    settings = {
        "max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "suppress_tokens": [image],
        "pad_token_id": 0,
    }  # fmt: skip
    return {
        OURS: lambda: model.generate(**batch, media_index=index, **settings)[:, -tokens:],
        LLAVA: lambda: theirs.generate(**batch, **settings)[:, -tokens:],
    }


KINDS = {"forward": forward_sides, "generate": generate_sides}


@torch.no_grad()
def results(options: argparse.Namespace) -> dict[str, Any]:
    found = pairing.provenance("prefix", options)
    text, vision = (SMALL_TEXT, SMALL_VISION) if options.small else (TEXT, VISION)
    theirs, model = (part.to(options.device) for part in llava(text, vision))
    found["marks"], found["cases"] = model.connector.tokens, {}
    for kind, sides_of in KINDS.items():
        for rows in options.batches:
            sides = sides_of(theirs, model, rows, options)
            apart = pairing.refuse_apart(f"{kind}, batch {rows}", sides[OURS](), sides[LLAVA](), TOLERANCE)
            seconds = in_turns(sides, options.rounds, options.device)
            found["cases"][f"{kind}, batch {rows}"] = {
                "furthest_apart": apart,
                "seconds": {name: median_with_interval(values) for name, values in seconds.items()},
                "ratio": ratio(seconds, LLAVA, OURS),
                "rounds": seconds,
            }
    return found


def markdown(found: dict[str, Any], options: argparse.Namespace) -> str:
    rows = [
        [what, *(f"{said(part['seconds'][name], 1, 1e3)} ms" for name in (OURS, LLAVA)), times(part["ratio"])]
        for what, part in found["cases"].items()
    ]
    apart = max(part["furthest_apart"] for part in found["cases"].values())
    return PAGE.format(
        table=table(("", OURS, LLAVA, "theirs takes"), rows),
        found=found,
        options=options,
        apart=apart,
        made=pairing.made(found),
    )


PAGE = """# Prefix fusion

Written by `{found[command]}`; do not edit.

{table}

{options.note}

{made} Medians over {options.rounds} rounds, the two in turns; ratios are medians of the rounds' ratios, intervals are 95%
bootstrap intervals of the medians.

- **The same work**: their weights on both sides, float32. Before anything is timed logits have to agree to 1e-4 and
  generated ids to be the same; the furthest apart is {apart:.1e}.
- **forward**: rows of {options.length} positions, {found[marks]} of which are an image's; encoding it is in the time.
- **generate**: {options.tokens} tokens after prompts of {options.prompt} positions, each model through its own `generate`
  with transformers' growing cache; encoding and the prompt are in the time.
- **The models**: CLIP's ViT-B/32, of which both read the last layer but one, two linears, and a Llama of six layers and
  width 512 (with `--small` all is tiny, for a test).
"""


def main() -> None:
    parser = pairing.parser(__doc__, rounds=15)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--length", type=int, help="of the rows of a forward pass: 256, or 16 with --small")
    parser.add_argument("--prompt", type=int, help="of the rows that are continued: 96, or 16 with --small")
    parser.add_argument("--tokens", type=int, help="32, or 4 with --small")
    options = parser.parse_args()
    pairing.fill_sizes(options, length=(256, 16), prompt=(96, 16), tokens=(32, 4))
    found = results(options)
    pairing.write(options.output, "prefix", found, markdown(found, options))


if __name__ == "__main__":
    main()
