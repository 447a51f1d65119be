"""What the model writes for documents of its own training data, over time: a look at it, not a measurement.

All of it lies in the run's folder: a line per text in `generations.jsonl`, the images of each prompt as one picture.
"""

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import PIL.Image

from flamingo_lite.document import IMAGE_TOKEN, Document, Image, Text
from flamingo_lite.errors import SampleError
from flamingo_lite.evaluation.results import write_atomically
from flamingo_lite.generation.generate import generate
from flamingo_lite.models.language import context_length
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.training.beside import Beside

NEW_TOKENS = 24
GENERATIONS = "generations.jsonl"
PICTURES = "samples"
HEIGHT = 96
"""Of a prompt's picture, in pixels; its images stand in it side by side."""


@dataclass(frozen=True)
class Prompt:
    """The document given, and the text that stands behind it in the data."""

    document: Document
    target: str


@dataclass(frozen=True)
class Sample:
    """What the model wrote at `step` for prompt number `number`, and what was expected."""

    step: int
    number: int
    prompt: str
    generated: str
    target: str

    @property
    def is_correct(self) -> bool:
        return self.generated.strip() == self.target.strip()


def choose_prompts(
    model: VisionLanguageModel, processor: VisionLanguageProcessor, documents: Iterable[Document], count: int
) -> list[Prompt]:
    """The first `count` documents that have a last trained-on text, and fit, and can be seen, up to that text."""
    longest = context_length(model.language.config)
    chosen: list[Prompt] = []
    for document in documents:
        if len(chosen) >= count:
            break
        prompt = split_last_answer(document)
        if prompt is None or not _can_be_seen(prompt.document):
            continue
        try:
            length = len(processor.encode(prompt.document))
        except SampleError:
            continue
        if longest is None or length + NEW_TOKENS <= longest:
            chosen.append(prompt)
    return chosen


def _can_be_seen(document: Document) -> bool:
    try:
        for image in document.images:
            image.pil()
    except SampleError:
        return False
    return True


def split_last_answer(document: Document) -> Prompt | None:
    """The document up to its last trained-on text, and that text; None where nothing comes before it."""
    texts = [(i, segment) for i, segment in enumerate(document) if isinstance(segment, Text)]
    places = [i for i, text in texts if text.loss and text.role in (None, "assistant")]
    if not places or places[-1] == 0:
        return None
    last = document[places[-1]]
    assert isinstance(last, Text)
    return Prompt(Document(document[: places[-1]], document.meta), last.text)


def continue_prompts(
    model: VisionLanguageModel,
    processor: VisionLanguageProcessor,
    prompts: Sequence[Prompt],
    step: int,
    in_step: bool = False,
) -> list[Sample]:
    """What the model writes now. `in_step`: several ranks generate together (see `generate`)."""
    if not prompts:
        return []
    options: dict[str, Any] = {"synced_gpus": True} if in_step else {}
    documents = [prompt.document for prompt in prompts]
    texts = generate(model, processor, documents, max_new_tokens=NEW_TOKENS, **options)
    return [
        Sample(step, number, written(prompt.document), text, prompt.target)
        for number, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
    ]


def written(document: Document) -> str:
    """The document as a line of text, with a mark for each image."""
    return "".join(IMAGE_TOKEN if isinstance(segment, Image) else segment.text for segment in document)


class SampleHistory:
    """All samples of a run so far, in its folder. Those after `resume_at` are dropped: the run takes those steps again."""

    def __init__(self, directory: Path, resume_at: int = 0, beside: Beside | None = None) -> None:
        self.directory = directory
        self.beside = beside or Beside()
        self.samples = [s for s in read_samples(directory / GENERATIONS) if s.step <= resume_at]
        if self.samples:
            self._write()
        else:
            (directory / GENERATIONS).unlink(missing_ok=True)

    def add(self, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> None:
        """Keeps samples of the `prompts`, whose pictures are drawn once."""
        self.samples += samples
        with self.beside.writing(str(self.directory / PICTURES)):
            for number, prompt in enumerate(prompts):
                path = picture_path(self.directory, number)
                if prompt.document.images and not path.exists():
                    picture = io.BytesIO()
                    side_by_side(list(prompt.document.images)).save(picture, format="PNG")
                    write_atomically(path, picture.getvalue())
        with self.beside.writing(str(self.directory / GENERATIONS)):
            self._write()

    def _write(self) -> None:
        lines = (json.dumps(asdict(sample), ensure_ascii=False) + "\n" for sample in self.samples)
        # Surrogates: a byte-level tokenizer may decode to a lone one.
        data = "".join(lines).encode("utf-8", errors="backslashreplace")
        write_atomically(self.directory / GENERATIONS, data)


def read_samples(path: Path) -> list[Sample]:
    """The lines of a `generations.jsonl`, without one that was cut short; none without a file."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [Sample(**json.loads(line)) for line in lines if line]


def picture_path(directory: Path, number: int) -> Path:
    """Where the picture of prompt `number` lies; a prompt without images has none."""
    return directory / PICTURES / f"{number}.png"


def side_by_side(images: Sequence[Image]) -> PIL.Image.Image:
    """The images in their order as one picture of height `HEIGHT`."""
    pictures = [image.pil() for image in images]
    sized = [p.resize((max(1, round(p.width * HEIGHT / p.height)), HEIGHT)) for p in pictures]
    whole = PIL.Image.new("RGB", (sum(p.width + 4 for p in sized) - 4, HEIGHT), "white")
    left = 0
    for picture in sized:
        whole.paste(picture, (left, 0))
        left += picture.width + 4
    return whole
