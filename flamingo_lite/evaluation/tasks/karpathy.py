"""Captions of COCO and Flickr30k photographs, by Karpathy's splits, judged by CIDEr-D (Vedantam et al. 2015).

CIDEr-D is 0 to 10 here; papers print a hundred times that. Captions are tokenized by the published program where it is
installed, for figures that compare with published ones; a cell says whether it was.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.demonstrations import Example
from flamingo_lite.evaluation.metrics import Scored
from flamingo_lite.evaluation.metrics.captions import bleu, cider_d, document_frequency, rouge_l
from flamingo_lite.evaluation.metrics.ptb import TokenizedCaptions, tokenize_captions
from flamingo_lite.evaluation.tasks.files import CONTROLS, Wording, image_at, mixed, records, worded
from flamingo_lite.evaluation.tasks.task import Answer, Items, Style, Task, listed

WORDINGS = {
    # OpenFlamingo's prompt, without a blank before the caption.
    "openflamingo": Wording("Output:", "{answer}"),
    "instruction": Wording("Provide a one-sentence caption for the provided image."),
}
STOPS = {"openflamingo": ("Output",), "instruction": ()}
SPLITS = {"test": "Karpathy's test images", "val": "Karpathy's validation images"}
SUPPORT = ("train", "restval")


def load(files: Mapping[str, str]) -> Items:
    """Errors: `FlamingoError` for a file of another kind, and an image that is not there."""
    by_split = _examples(files["annotations"], files["images"])
    support = [example for split in SUPPORT for example in by_split.get(split, [])]
    queries = {split: mixed(by_split[split]) for split in SPLITS if split in by_split}
    if not queries:
        raise FlamingoError(f"{files['annotations']}: has images of neither {' nor '.join(SPLITS)}")
    return listed(queries, dict.fromkeys(queries, support))


def _examples(path: str, images: str) -> dict[str, list[Example]]:
    """The images of each split; a demonstration shows the first caption of its image."""
    found: dict[str, list[Example]] = {}
    required = {"filename": str, "split": str, "sentences": list, "imgid": int}
    for record in records(path, required, name="images"):
        captions = tuple(
            sentence["raw"].strip()
            for sentence in record.fields["sentences"]
            if isinstance(sentence, dict) and isinstance(sentence.get("raw"), str)
        )
        if not captions or len(captions) < len(record.fields["sentences"]):
            raise FlamingoError(f"{record.where}: its sentences are no captions; expected texts under 'raw'")
        folder, name = record.fields.get("filepath"), record.fields["filename"]
        image = image_at(images, f"{folder}/{name}" if folder else name, record.where)
        example = Example(name, (image,), "", captions[0], captions)
        found.setdefault(record.fields["split"], []).append(example)
    return found


def is_written(text: str, example: Example) -> Scored:
    """The caption as it is; its score comes from `scored_together`."""
    return Scored(text.strip(), 0.0, "ok" if text.strip() else "unparsed")


def scored_together(texts: Sequence[str], examples: Sequence[Example]) -> list[float]:
    """CIDEr-D of each text. An image that comes several times, under several seeds, counts once among the
    references whose n-grams are weighed."""
    if not texts:
        return []
    references = _references(examples)
    return cider_d(
        _tokens(tuple(texts)).captions,
        [references[example.id] for example in examples],
        document_frequency(list(references.values())),
    )


def figures(answers: Sequence[Answer]) -> Mapping[str, float | None]:
    """BLEU and ROUGE-L as COCO's evaluation has them, and whether its own tokenizer was there (1) or ours (0)."""
    if not answers:
        return {}
    tokens = _tokens(tuple(answer.raw for answer in answers))
    known = _references([answer.example for answer in answers])
    references = [known[answer.example.id] for answer in answers]
    by_order = bleu(tokens.captions, references).corpus
    rouge = [rouge_l(text, captions) for text, captions in zip(tokens.captions, references, strict=True)]
    return {
        **{f"bleu_{order}": value for order, value in enumerate(by_order, start=1)},
        "rouge_l": sum(rouge) / len(rouge),
        "java_tokenizer": float(tokens.tokenizer == "java"),
    }


def _references(examples: Sequence[Example]) -> dict[str, list[str]]:
    """The tokens of each image's captions, by its id."""
    distinct = {example.id: example.right_answers for example in examples}
    tokens = iter(_tokens(tuple(caption for captions in distinct.values() for caption in captions)).captions)
    return {key: [next(tokens) for _ in captions] for key, captions in distinct.items()}


# All at once, and once for the score and the figures: the published tokenizer is a program that takes a second to start.
@lru_cache(maxsize=16)
def _tokens(texts: tuple[str, ...]) -> TokenizedCaptions:
    return tokenize_captions([text.strip() for text in texts])


def _task(name: str, asks: str, annotations: str) -> Task:
    return Task(
        name=name,
        asks=asks,
        splits=SPLITS,
        styles={
            style: Style(
                is_written,
                "cider_d",
                (0.0, 10.0),
                max_new_tokens=20 if style == "openflamingo" else 64,
                stop=STOPS[style],
                together=scored_together,
                figures=figures,
            )
            for style in WORDINGS
        },
        write=worded(WORDINGS),
        load=load,
        files={
            "annotations": annotations,
            "images": "the folder of the images, or of the folders that the file names",
        },
        controls=CONTROLS,
        instruction="Describe the image in one sentence.",
    )


COCO_CAPTIONS = _task("coco_captions", "a caption for a photograph (COCO)", "dataset_coco.json")
FLICKR30K_CAPTIONS = _task(
    "flickr30k_captions", "a caption for a photograph (Flickr30k)", "dataset_flickr30k.json"
)
