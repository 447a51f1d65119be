"""The two ways of evaluating that `evaluation.py` compares, on the same weights, prompts and images.

ours: `evaluation.answering`, as `flamingo-lite eval` runs it. theirs: OpenFlamingo's `Flamingo`, driven as its evaluation
does: a batch of queries at a time, every image of every prompt decoded, prepared and encoded again, every class name run
on its own after the prompt's cache (`get_rank_classifications`).
Shape letters: b queries of a batch, t text positions, i images of a prompt, s class names.
"""

from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import PIL.Image
import torch
from peers import GATE, open_flamingo
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from flamingo_lite.config import load_config
from flamingo_lite.document import Document, Image, Text
from flamingo_lite.evaluation.answering import ModelAnswers
from flamingo_lite.evaluation.answers import Written
from flamingo_lite.models.build import build, build_processor
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.processing import VisionLanguageProcessor

NEW_TOKENS = 5  # what their VQA evaluation asks for
WORDS = (
    "what",
    "is",
    "the",
    "colour",
    "of",
    "a",
    "cat",
    "on",
    "left",
    "how",
    "many",
    "people",
    "in",
    "this",
    "picture",
)
ANSWERS = ("red", "two", "yes", "no", "a dog", "on the table", "blue", "seven")


@dataclass(frozen=True)
class Item:
    """A question or a class, with its image."""

    image: Path
    question: str
    answer: str


@dataclass(frozen=True)
class Asked:
    """A query and the demonstrations before it."""

    demonstrations: tuple[Item, ...]
    query: Item


def class_names() -> list[str]:
    """The 1,000 names that OpenFlamingo's evaluation of ImageNet ranks."""
    package = importlib.util.find_spec("open_flamingo")
    if package is None or package.origin is None:
        raise SystemExit("open-flamingo is not installed; expected open-flamingo==2.0.1 (make setup)")
    path = Path(package.origin).parent / "eval" / "classification_utils.py"
    spec = importlib.util.spec_from_file_location("classification_utils", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(module.IMAGENET_CLASSNAMES)


def draw_items(folder: Path, count: int, edges: tuple[int, int], seed: int) -> list[Item]:
    """Photographs they are not: coloured blots, JPEG, of the size of COCO's."""
    generator, numbers = np.random.default_rng(seed), random.Random(seed)
    folder.mkdir(parents=True)
    items = []
    for number in range(count):
        small = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        path = folder / f"{number:05}.jpg"
        PIL.Image.fromarray(small).resize(edges, PIL.Image.Resampling.BICUBIC).save(path, quality=90)
        question = " ".join(numbers.choices(WORDS, k=numbers.randint(5, 9)))
        items.append(Item(path, question, numbers.choice(ANSWERS)))
    return items


def write_tokenizer(folder: Path, names: Sequence[str], merges: int, words: int) -> None:
    """Byte pairs learned on the class names, `merges` of them, which decides how many tokens a name has; and as many
    entries that no text comes to as make `words`, so that every row of the language model can be written."""
    core = Tokenizer(BPE())
    core.pre_tokenizer = Whitespace()
    trainer = BpeTrainer(vocab_size=merges, show_progress=False, special_tokens=["<|endoftext|>"])
    core.train_from_iterator([*names, *WORDS, *ANSWERS, "Question : Short answer Output"], trainer)
    learned = json.loads(core.to_str())["model"]
    vocabulary = dict(learned["vocab"])
    for number in range(words - len(vocabulary)):
        vocabulary[f"~{number}"] = len(vocabulary)
    core.model = BPE(vocabulary, [tuple(pair) for pair in learned["merges"]])
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>").save_pretrained(folder)


def build_ours(overrides: Sequence[str]) -> tuple[VisionLanguageModel, VisionLanguageProcessor]:
    torch.manual_seed(0)
    config = load_config(list(overrides)).model
    model = build(config)
    with torch.no_grad():
        for name, parameter in model.language.named_parameters():
            if parameter.dim() > 1 and "norm" not in name and "cross_attention" not in name:
                # The stock 0.02 leaves logits so flat that every choice would be a tie.
                parameter.normal_(std=0.05)
        for block in model.blocks.values():
            nn.init.constant_(block.attention_gate, GATE)
            nn.init.constant_(block.feed_forward_gate, GATE)
    return model.eval().requires_grad_(False), build_processor(config)


class Ours:
    """`ModelAnswers`, whose images stay known from call to call."""

    def __init__(
        self, model: VisionLanguageModel, processor: VisionLanguageProcessor, batch_size: int
    ) -> None:
        self.processor = processor
        self.answers = ModelAnswers(model, processor, batch_size)
        self.images: dict[Path, Image] = {}

    def vqa(self, asked: Sequence[Asked]) -> list[str]:
        documents = [self._document(each, vqa_segments) for each in asked]
        found = self.answers.generate(documents, NEW_TOKENS)
        return [answer.text if isinstance(answer, Written) else str(answer) for answer in found]

    def rank(self, asked: Sequence[Asked], names: Sequence[str]) -> Tensor:
        """(b s) log-probabilities."""
        documents = [self._document(each, class_segments) for each in asked]
        candidates = [Text(name) for name in names]
        found = self.answers.rank(documents, [candidates] * len(documents))
        return torch.tensor([[likelihood.log_probability for likelihood in row] for row in found])

    def ids(self, asked: Asked, segments: Any) -> list[int]:
        return self.processor.encode(self._document(asked, segments)).input_ids

    def _document(self, asked: Asked, segments: Any) -> Document:
        return Document([s for text in segments(asked) for s in self._of(text)])

    def _of(self, segment: str | Path) -> list[Image | Text]:
        if isinstance(segment, Path):
            # Known by what is in it, whoever names it; the bytes are read once.
            return [self.images.setdefault(segment, Image(segment))]
        body, end, _ = segment.partition("<|endofchunk|>")
        return [Text(body, ends_chunk=bool(end))]


def vqa_segments(asked: Asked) -> list[str | Path]:
    """`get_vqa_prompt` of their evaluation, images in place of marks."""
    found: list[str | Path] = []
    for item in asked.demonstrations:
        found += [item.image, f"Question:{item.question} Short answer:{item.answer}<|endofchunk|>\n"]
    return [*found, asked.query.image, f"Question:{asked.query.question} Short answer:"]


def class_segments(asked: Asked) -> list[str | Path]:
    """`get_imagenet_prompt` of their evaluation."""
    found: list[str | Path] = []
    for item in asked.demonstrations:
        found += [item.image, f"Output:{item.answer}<|endofchunk|>"]
    return [*found, asked.query.image, "Output:"]


class Theirs:
    """Their model, with the weights of ours, and their evaluation's way of using it."""

    def __init__(
        self, model: VisionLanguageModel, processor: VisionLanguageProcessor, batch_size: int
    ) -> None:
        self.model, _ = open_flamingo(model)
        self.model.eval().requires_grad_(False)
        self.tokenizer = processor.tokenizer
        self.batch_size = batch_size
        self.end = self.tokenizer.convert_tokens_to_ids("<|endofchunk|>")
        self.suppressed = [model.config.image_token_id]
        shape = processor.image_transform
        self.transform = open_clip.image_transform(
            shape.size, is_train=False, mean=shape.mean, std=shape.std, interpolation="bicubic"
        )
        # `get_query_set` holds the demonstrations' images decoded; queries' are decoded as they come.
        self.pool: dict[Path, PIL.Image.Image] = {}

    def hold(self, items: Sequence[Item]) -> None:
        self.pool = {item.image: decoded(item.image) for item in items}

    def vqa(self, asked: Sequence[Asked]) -> list[str]:
        texts: list[str] = []
        for start in range(0, len(asked), self.batch_size):
            inputs = self._inputs(asked[start : start + self.batch_size], vqa_segments)
            texts += [self._cut(ids) for ids in self._greedy(inputs).tolist()]
        return texts

    def rank(self, asked: Sequence[Asked], names: Sequence[str]) -> Tensor:
        """(b s) log-probabilities. Their code hands no mask to the forwards after the cache; padding would then be
        seen, so prompts here are of one length."""
        rows = []
        for start in range(0, len(asked), self.batch_size):
            inputs = self._inputs(asked[start : start + self.batch_size], class_segments)
            assert bool(inputs["attention_mask"].all()), "the prompts of a batch differ in length"
            self.model.cache_media(input_ids=inputs["lang_x"], vision_x=inputs["vision_x"])
            out = self.model(
                vision_x=None, lang_x=inputs["lang_x"], attention_mask=inputs["attention_mask"],
                clear_conditioned_layers=False, use_cache=True,
            )  # fmt: skip
            prompt, cache = out.logits[:, -1:], out.past_key_values
            kept = [(layer.keys, layer.values) for layer in cache.layers]
            found = []
            for name in names:
                for layer, (keys, values) in zip(cache.layers, kept, strict=True):
                    layer.keys, layer.values = keys, values
                ids = self.tokenizer(name, add_special_tokens=False, return_tensors="pt")["input_ids"]
                ids = ids.expand(len(prompt), -1)
                after = self.model(
                    vision_x=None, lang_x=ids, attention_mask=None, clear_conditioned_layers=False,
                    past_key_values=cache,
                ).logits  # fmt: skip
                logp = torch.cat((prompt, after[:, :-1]), dim=1).log_softmax(-1)
                found.append(logp.gather(2, ids[:, :, None]).squeeze(-1).sum(1))
            self.model.uncache_media()
            rows.append(torch.stack(found, dim=1))
        return torch.cat(rows)

    def _greedy(self, inputs: dict[str, Tensor]) -> Tensor:
        """The forwards that their `generate` makes; under this release of transformers it calls them without a mask,
        which they insist on."""
        language, mask = self.model.lang_encoder, inputs["attention_mask"]
        language._use_cached_vision_x = True
        self.model._encode_vision_x(vision_x=inputs["vision_x"])
        ids, cache, written = inputs["lang_x"], None, []
        ended = torch.zeros(len(ids), dtype=torch.bool)
        while len(written) < NEW_TOKENS and not bool(ended.all()):
            out = language(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True)
            logits, cache = out.logits[:, -1], out.past_key_values
            logits[:, self.suppressed] = -torch.inf
            ids = logits.argmax(-1, keepdim=True)
            mask = torch.cat((mask, torch.ones_like(ids)), dim=1)
            written.append(ids)
            ended |= ids[:, 0] == self.end
        language.clear_conditioned_layers()
        language._use_cached_vision_x = False
        return torch.cat(written, dim=1)

    def ids(self, asked: Asked, segments: Any) -> list[int]:
        return self._inputs([asked], segments)["lang_x"][0].tolist()

    def _inputs(self, asked: Sequence[Asked], segments: Any) -> dict[str, Tensor]:
        written = [segments(each) for each in asked]
        texts = ["".join("<image>" if isinstance(s, Path) else s for s in row) for row in written]
        images = [[self._pixels(s) for s in row if isinstance(s, Path)] for row in written]
        self.tokenizer.padding_side = "left"
        tokens = self.tokenizer(
            texts, padding="longest", truncation=True, return_tensors="pt", max_length=2000
        )
        vision = torch.stack([torch.stack(row) for row in images])[:, :, None]
        return {"vision_x": vision, "lang_x": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}

    def _pixels(self, path: Path) -> Tensor:
        image: Any = self.pool.get(path)
        return self.transform(decoded(path) if image is None else image)  # pyrefly: ignore

    def _cut(self, ids: list[int]) -> str:
        written = ids[: ids.index(self.end)] if self.end in ids else ids
        return self.tokenizer.decode(written, skip_special_tokens=True)


def decoded(path: Path) -> PIL.Image.Image:
    image = PIL.Image.open(path)
    image.load()
    return image.convert("RGB")
