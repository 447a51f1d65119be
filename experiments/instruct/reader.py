"""How much of a text the frozen eye keeps: a small reader is trained on patch features and nothing else.

    python experiments/instruct/reader.py --layer -2

Three layers of attention over the features, a learned query for each glyph. Prints the share of new texts that are read
whole, by their number of glyphs, after each round over the training texts. --layer: of the vision encoder; by default the
last one, behind its norm, which the tiny LLaVA reads.
"""

from __future__ import annotations

import argparse
import io
import random
from collections import defaultdict

import PIL.Image
import torch
from torch import Tensor, nn

import flamingo_lite as fl
from flamingo_lite.config import load_config
from flamingo_lite.data.synthetic.canvas import draw_text
from flamingo_lite.data.synthetic.reading import text

GLYPHS = 9
TESTED = 2000
BATCH = 64


class Reader(nn.Module):
    """Patch features (b p d) -> logits (b GLYPHS glyph)."""

    def __init__(self, patches: int, features: int, glyphs: int, width: int = 128) -> None:
        super().__init__()
        self.project = nn.Linear(features, width)
        self.place = nn.Parameter(0.02 * torch.randn(patches, width))
        self.queries = nn.Parameter(0.3 * torch.randn(GLYPHS, width))
        layer = nn.TransformerDecoderLayer(width, 4, 2 * width, 0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerDecoder(layer, 3)
        self.head = nn.Linear(width, glyphs)

    def forward(self, features: Tensor) -> Tensor:
        seen = self.project(features) + self.place
        return self.head(self.layers(self.queries.expand(len(features), -1, -1), seen))


@torch.no_grad()
def drawn(number: int, layer: int | None) -> tuple[Tensor, list[str]]:
    """Features (number p d) of pictures of texts, and the texts without their blanks."""
    overrides = [] if layer is None else [f"model.vision.layer={layer}", "model.vision.final_norm=false"]
    config = load_config(["model=llava_tiny", *overrides]).model
    vision, transform = fl.build(config).vision, fl.build_processor(config).image_transform
    generator = random.Random(5)
    texts = [text(generator) for _ in range(number)]
    found = []
    for start in range(0, number, 200):
        pictures = [
            PIL.Image.open(io.BytesIO(draw_text(words, generator))) for words in texts[start : start + 200]
        ]
        pixels = torch.stack([transform(picture.convert("RGB")) for picture in pictures])
        found.append(vision(pixels))
    features = torch.cat(found)
    return features / features.std(), [words.replace(" ", "") for words in texts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--layer", type=int)
    parser.add_argument("--texts", type=int, default=22000)
    parser.add_argument("--rounds", type=int, default=14)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    features, texts = drawn(options.texts + TESTED, options.layer)
    glyphs = {glyph: number for number, glyph in enumerate(sorted(set("".join(texts))), 1)}
    wanted = torch.zeros(len(texts), GLYPHS, dtype=torch.long)
    for row, words in zip(wanted, texts, strict=True):
        row[: len(words)] = torch.tensor([glyphs[glyph] for glyph in words])

    reader = Reader(features.shape[1], features.shape[2], len(glyphs) + 1)
    steps = options.rounds * (options.texts // BATCH)
    optimizer = torch.optim.AdamW(reader.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, steps, pct_start=0.1)
    for turn in range(options.rounds):
        order = torch.randperm(options.texts)
        for chosen in order[: options.texts // BATCH * BATCH].split(BATCH):
            logits = reader(features[chosen])
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), wanted[chosen].flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        print(turn + 1, scores(reader, features[-TESTED:], wanted[-TESTED:]), flush=True)


@torch.no_grad()
def scores(reader: Reader, features: Tensor, wanted: Tensor) -> str:
    right = [
        (reader(f).argmax(-1) == w).all(1)
        for f, w in zip(features.split(500), wanted.split(500), strict=True)
    ]
    by_length = defaultdict(list)
    for row, is_right in zip(wanted, torch.cat(right).tolist(), strict=True):
        by_length[int((row > 0).sum())].append(is_right)
    whole = sum(map(sum, by_length.values())) / len(wanted)
    return f"{whole:.3f}  " + "  ".join(f"{n}: {sum(r) / len(r):.2f}" for n, r in sorted(by_length.items()))


if __name__ == "__main__":
    main()
