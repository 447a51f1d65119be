"""Scores a model that was tuned on the synthetic conversations, on scenes and lettering that no training picture shows.

    python experiments/instruct/score.py outputs/llava_tiny_instruct/flamingo --output llava.json

Single questions: 800 of each kind, a held-out scene each. Conversations: three turns about two held-out images, in which
the model goes on from its own answers; two of the turns mostly ask the same of both images, with different answers.
--words: the same in words, every image replaced by what it shows: what the language model can do at best.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import random
from collections import defaultdict
from collections.abc import Sequence

import torch

import flamingo_lite as fl
from flamingo_lite.data.synthetic.canvas import Source
from flamingo_lite.data.synthetic.conversations import about_scene, about_text, conversation, two_images
from flamingo_lite.data.synthetic.questions import KINDS, ask, draw_scene_with, draw_subject
from flamingo_lite.data.synthetic.reading import text
from flamingo_lite.document import Document, Image, Text
from flamingo_lite.evaluation.statistics import clustered_bootstrap
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.processing import VisionLanguageProcessor

LETTERING: dict[str, Source] = {"training": "train", "unseen": "test"}
MOST_TOKENS = 32


def question_about_scene(kind: str, number: int) -> Document:
    """One question about a held-out scene."""
    generator = random.Random(f"held-out {kind} {number}")
    while True:
        shown = draw_scene_with(generator, draw_subject(generator), held_out=True)
        if (question := ask(kind, shown, generator)) is not None:
            return conversation([shown], [about_scene(question, shown, 0)], [0], generator)


def question_about_text(lettering: str, number: int) -> Document:
    generator = random.Random(f"reading {number}")
    shown = text(generator)
    return conversation([shown], [about_text(shown, 0)], [0], generator, source=LETTERING[lettering])


def played(
    model: VisionLanguageModel, processor: VisionLanguageProcessor, documents: Sequence[Document]
) -> list[list[tuple[str, str]]]:
    """(said, wanted) of every turn of every conversation; each goes on from what the model itself has said."""
    histories: list[list[Text | Image]] = [[] for _ in documents]
    said: list[list[tuple[str, str]]] = [[] for _ in documents]
    rest = [list(document) for document in documents]
    while any(rest):
        asked = [number for number, segments in enumerate(rest) if segments]
        for number in asked:
            while not is_answer(rest[number][0]):
                histories[number].append(rest[number].pop(0))
        prompts = [Document(histories[number]) for number in asked]
        answers = fl.generate(model, processor, prompts, max_new_tokens=MOST_TOKENS)
        for number, answer in zip(asked, answers, strict=True):
            wanted = rest[number].pop(0)
            assert isinstance(wanted, Text)
            said[number].append((answer.strip(), wanted.text))
            # An empty answer cannot stand in a conversation.
            histories[number].append(Text(answer.strip() or "?", role="assistant", ends_chunk=True))
    return said


def is_answer(segment: Text | Image) -> bool:
    return isinstance(segment, Text) and segment.role == "assistant"


def figures(rights: Sequence[bool], of: Sequence[int] | None = None) -> dict[str, object]:
    """The share that is right, with a 95% interval by a bootstrap over conversations (`of`)."""
    found = clustered_bootstrap(
        [float(right) for right in rights], list(of or range(len(rights))), 2000, bounds=(0.0, 1.0)
    )
    interval = None if found.ci95 is None else [round(bound, 3) for bound in found.ci95]
    return {
        "value": None if found.value is None else round(found.value, 3),
        "ci95": interval,
        "n": len(rights),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--number", type=int, default=800)
    parser.add_argument("--words", action="store_true", help="images are replaced by what they show")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    model, processor = fl.load(arguments.model)
    results: dict[str, object] = {}
    wrong: dict[str, list[tuple[str, str]]] = {}
    sets = {kind: [question_about_scene(kind, i) for i in range(arguments.number)] for kind in KINDS}
    for lettering in LETTERING:
        sets[f"reading, {lettering} lettering"] = [
            question_about_text(lettering, i) for i in range(arguments.number)
        ]
    for name, documents in sets.items():
        if arguments.words:
            documents = [document.text_twin() for document in documents]
        pairs = [turns[0] for turns in played(model, processor, documents)]
        results[name] = figures([said == wanted for said, wanted in pairs])
        wrong[name] = [pair for pair in pairs if pair[0] != pair[1]][:5]
        print(f"{name:>28}  {results[name]}  {wrong[name][:2]}", flush=True)

    documents = [two_images(random.Random(f"two images {i}"), held_out=True) for i in range(arguments.number)]
    if arguments.words:
        documents = [document.text_twin() for document in documents]
    said = played(model, processor, documents)
    by_kind: dict[str, list[bool]] = defaultdict(list)
    turns: list[bool] = []
    owners: list[int] = []
    confused: list[bool] = []
    for owner, (document, pairs) in enumerate(zip(documents, said, strict=True)):
        asked = [
            (turn["kind"], turn["image"], *pair)
            for turn, pair in zip(document.meta["turns"], pairs, strict=True)
        ]
        for kind, image, answer, wanted in asked:
            by_kind[kind].append(answer == wanted)
            turns.append(answer == wanted)
            owners.append(owner)
            # The same was asked of the other image, and has another answer there.
            others = [right for k, i, _, right in asked if k == kind and i != image and right != wanted]
            confused += [answer in others] if others else []
    results["two images, three turns"] = figures(turns, owners)
    results["two images, all of a conversation"] = figures([all(a == b for a, b in pairs) for pairs in said])
    results["two images, the other image's answer"] = figures(confused)
    results["two images, by kind"] = {kind: figures(rights) for kind, rights in sorted(by_kind.items())}
    print(json.dumps({k: v for k, v in results.items() if k.startswith("two")}, indent=1))
    if arguments.output:
        arguments.output.write_text(json.dumps({**results, "some that are wrong": wrong}, indent=1) + "\n")


if __name__ == "__main__":
    main()
