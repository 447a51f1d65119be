"""Trains the tiny CLIP contrastively, with open_clip's own model, loss and transform, on the families' pictures.

It begins easy: mostly single glyphs. Then a batch is made hard: its captions are distinct, it holds all 80 expressions
that may be shown, and readings in groups of four that differ in one digit. So the patch features have to say which glyph
stands where. Muon trains the matrices of the blocks, AdamW the rest.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import math
import pathlib
import random
import time
from collections.abc import Iterator

import open_clip
import PIL.Image
import torch
from open_clip.model import CLIP
from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, IterableDataset
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from flamingo_lite.data.synthetic.canvas import HEIGHT, WIDTH, draw_text
from flamingo_lite.data.synthetic.operators import pairs, picture
from flamingo_lite.data.synthetic.picture import Picture
from flamingo_lite.data.synthetic.reading import shows_held_out_pair
from flamingo_lite.data.synthetic.reading import text as reading_text
from flamingo_lite.data.synthetic.scenes import scene, things

PREPROCESS = {
    "size": [HEIGHT, WIDTH],
    "mode": "RGB",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
    "interpolation": "bicubic",
    "resize_mode": "squash",
    "fill_color": 0,
}
CAPTION = 24
GLYPHS = tuple("0123456789?+-=")
EASY_STEPS = 250


def model_config(vocabulary: int) -> dict:
    return {
        "embed_dim": 96,
        "vision_cfg": {
            "image_size": [HEIGHT, WIDTH],
            "patch_size": 8,
            "width": 128,
            "layers": 3,
            # Means of patches, so that the last layer's patch features, which the bridge reads, are trained.
            "pool_type": "avg",
            "head_width": 32,
            "mlp_ratio": 4.0,
        },
        "text_cfg": {
            "context_length": CAPTION,
            "vocab_size": vocabulary,
            "width": 96,
            "heads": 3,
            "layers": 2,
        },
    }


class Pairs(IterableDataset[tuple[torch.Tensor, torch.Tensor]]):
    """Batches of pictures (b c h w) and their captions' ids (b t)."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int, steps: range, batch: int) -> None:
        self.tokenizer, self.seed, self.steps, self.batch = tokenizer, seed, steps, batch
        self.transform = image_transform_v2(PreprocessCfg(**PREPROCESS), is_train=False)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        torch.set_num_threads(1)
        for step in self.steps:
            generator = random.Random(f"{self.seed} {step}")
            draw = easy if step < EASY_STEPS else hard
            shown = draw(generator, self.batch)
            drawn = [PIL.Image.open(io.BytesIO(one.draw(generator))) for one in shown]
            yield (
                torch.stack([self.transform(one) for one in drawn]),
                self.captions([one.words for one in shown]),
            )

    def captions(self, words: list[str]) -> torch.Tensor:
        """Ids closed by the highest id, at which open_clip pools."""
        ids = torch.full((len(words), CAPTION), self.tokenizer.pad_token_id)
        for row, text in enumerate(words):
            tokens = self.tokenizer(text, add_special_tokens=False)["input_ids"][: CAPTION - 1]
            ids[row, : len(tokens) + 1] = torch.tensor([*tokens, len(self.tokenizer)])
        return ids


def easy(generator: random.Random, number: int) -> list[Picture]:
    """Mostly single glyphs, captions shared: what a digit looks like is learnt first, and fast."""
    shown = [reads(generator.choice(GLYPHS)) for _ in range(number * 3 // 8)]
    shown += [reads(double(generator)) for _ in range(number // 4)]
    shown += [picture(a, b) for a, b in generator.sample(pairs(held_out=False), number // 4)]
    return shown + [scene(things(generator)) for _ in range(number - len(shown))]


def hard(generator: random.Random, number: int) -> list[Picture]:
    """Distinct captions: glyphs, expressions, doubles, groups of readings that differ in a glyph, and scenes."""
    found = {words: reads(words) for words in GLYPHS}
    for a, b in generator.sample(pairs(held_out=False), number * 5 // 16):
        found[f"{a} ? {b}"] = picture(a, b)
    while len(found) < number * 3 // 4:
        words = double(generator)
        found[words] = reads(words)
    while len(found) < number * 7 // 8:
        for words in alike(generator):
            found[words] = reads(words)
    while len(found) < number:
        shown = scene(things(generator))
        found[shown.words] = shown
    return list(found.values())[:number]


def reads(words: str) -> Picture:
    return Picture(words, functools.partial(draw_text, words))


def double(generator: random.Random) -> str:
    """Two digits, close, apart, or around a sign; never a held-out pair."""
    while True:
        words = (
            f"{generator.randrange(10)}{generator.choice(('', ' ', ' + ', ' - '))}{generator.randrange(10)}"
        )
        if not shows_held_out_pair(words):
            return words


def alike(generator: random.Random) -> list[str]:
    """A reading and three that differ from it in a digit (or a letter, in a word)."""
    words = reading_text(generator)
    group = [words]
    places = [i for i, glyph in enumerate(words) if glyph.isalnum()]
    for _ in range(3):
        place = generator.choice(places)
        glyph = str(generator.randrange(10)) if words[place].isdecimal() else generator.choice("aeiou")
        changed = words[:place] + glyph + words[place + 1 :]
        if not shows_held_out_pair(changed):
            group.append(changed)
    return group


@torch.no_grad()
def retrieval(model: CLIP, data: Pairs, source: str, held_out: bool) -> float:
    """How often a picture's nearest caption among all 100 expressions is its own."""
    generator = random.Random(f"retrieval {source}")
    captions = [f"{a} ? {b}" for a in range(10) for b in range(10)]
    wanted = [pair for pair in pairs(held_out) for _ in range(5)]
    drawn = [PIL.Image.open(io.BytesIO(picture(a, b, source).draw(generator))) for a, b in wanted]
    features = model.encode_image(
        torch.stack([data.transform(one) for one in drawn]).to(device_of(model)), normalize=True
    )
    texts = model.encode_text(data.captions(captions).to(device_of(model)), normalize=True)
    nearest = (features @ texts.T).argmax(-1).tolist()
    return sum(captions[i] == f"{a} ? {b}" for i, (a, b) in zip(nearest, wanted, strict=True)) / len(wanted)


def in_blocks(model: CLIP, matrices: bool) -> list[torch.nn.Parameter]:
    """The matrices inside the transformers' blocks, or every other parameter."""
    return [p for name, p in model.named_parameters() if ("resblocks" in name and p.ndim == 2) == matrices]


def share_of_rate(step: int, steps: int) -> float:
    """Linear over the first 100 steps, times a cosine down to 0.02."""
    return min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def device_of(model: CLIP) -> torch.device:
    return model.logit_scale.device


def save(model: CLIP, config: dict, output: pathlib.Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()}, output / "open_clip_model.safetensors"
    )
    content = {"model_cfg": config, "preprocess_cfg": PREPROCESS}
    (output / "open_clip_config.json").write_text(json.dumps(content, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=pathlib.Path, required=True)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--steps", type=int, default=2800)
    parser.add_argument(
        "--first", type=int, default=0, help="continue the weights in --output, from this step on"
    )
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=8e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    config = model_config(len(tokenizer) + 1)
    model = CLIP(**config).to(device)
    if arguments.first:
        model.load_state_dict(load_file(arguments.output / "open_clip_model.safetensors"))
    loss_function = open_clip.ClipLoss()
    optimizers = [
        torch.optim.Muon(
            in_blocks(model, matrices=True),
            lr=arguments.rate,
            weight_decay=0.05,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            in_blocks(model, matrices=False), lr=arguments.rate / 4, betas=(0.9, 0.98), fused=True
        ),
    ]
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(
            one, functools.partial(share_of_rate, steps=arguments.steps - arguments.first)
        )
        for one in optimizers
    ]
    steps = range(arguments.first, arguments.steps)
    data = Pairs(tokenizer, arguments.seed, steps, arguments.batch)
    started = time.time()
    loader = DataLoader(data, batch_size=None, num_workers=1, prefetch_factor=4)
    for step, (images, captions) in zip(steps, loader, strict=True):
        with torch.autocast(device, torch.bfloat16):
            image_features, text_features, scale = model(images.to(device), captions.to(device))[:3]
        loss = loss_function(image_features.float(), text_features.float(), scale)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for one in (*optimizers, *schedulers):
            one.step()
        model.zero_grad()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        if step % 50 == 0:
            print(f"step {step:5d}  loss {loss.item():.4f}  {time.time() - started:6.0f} s", flush=True)
        if step % 200 == 199:
            save(model, config, arguments.output)
            found = {held_out: retrieval(model.eval(), data, "test", held_out) for held_out in (False, True)}
            print(
                f"retrieval: trained pairs {found[False]:.3f}, held-out pairs {found[True]:.3f}", flush=True
            )
            model.train()
    model.eval()
    save(model, config, arguments.output)
    figures = {
        "steps": arguments.steps,
        "pictures": arguments.steps * arguments.batch,
        "wall_seconds": round(time.time() - started),
        "final_loss": round(loss.item(), 4),
        "retrieval_among_100_expressions": {
            f"{source}, {'held-out' if held_out else 'trained'} pairs": retrieval(
                model, data, source, held_out
            )
            for source in ("train", "test", "handwritten")
            for held_out in (False, True)
        },
        "parameters": {
            "image": sum(p.numel() for p in model.visual.parameters()),
            "all": sum(p.numel() for p in model.parameters()),
        },
    }
    print(json.dumps(figures, indent=1))
    pathlib.Path(__file__).with_name("clip.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
