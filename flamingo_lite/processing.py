"""The processor: documents to a `Batch`. Tokenizer, template and image transform, saved and loaded together.

Here, and nowhere else, it is decided which position attends to which image (`media_index`).
Shape letters: b batch, t text positions, m images in the whole batch, c channels, h height, w width.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, cast

import torch
from torch import Tensor
from transformers import AutoTokenizer, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils import cached_file

from flamingo_lite.batch import IGNORED, NO_IMAGE, NO_SEGMENT, Batch
from flamingo_lite.document import IMAGE_TOKEN, Document, Image
from flamingo_lite.errors import FlamingoError, SampleError
from flamingo_lite.image_transform import ImageTransform
from flamingo_lite.text.chat import chat_template_for, chat_template_of, check_messages
from flamingo_lite.text.connector_text import instruction_ids, pad_texts
from flamingo_lite.text.template import Template
from flamingo_lite.text.tokenizer import Encoded, add_tokens, encode

PaddingSide = Literal["left", "right"]

CONNECTOR_TOKENIZER = "connector_tokenizer"
"""The folder of the connector's tokenizer in a saved processor."""

Component = TypeVar("Component", ImageTransform, Template)


class VisionLanguageProcessor(ProcessorMixin):
    """Documents to a `Batch`; also the `text`, `images` call that transformers' pipelines make.

    The tokenizer gets a padding token and the template's (`<image>`, `<|endofchunk|>`) where it lacks them.
    `chat_template`: how chat messages become text; by default as the template writes conversations, else the
    tokenizer's own, with marks for images, or a line for each message. `connector_tokenizer`: of a connector that reads
    a text beside each image; None by default. It is saved with the processor, in a folder of its own.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        image_transform: ImageTransform | dict[str, Any] | None = None,
        template: Template | dict[str, Any] | None = None,
        chat_template: str | None = None,
    ) -> None:
        template = _component(Template, template)
        add_tokens(tokenizer, template.special_tokens)
        # Pipelines that batch pad with the tokenizer's side, and a prompt is continued at its right.
        tokenizer.padding_side = "left"
        super().__init__(tokenizer, chat_template=chat_template or _chat_template(tokenizer, template))
        self.image_transform = _component(ImageTransform, image_transform)
        self.template = template
        # No argument: transformers would then ask every processor for one.
        self.connector_tokenizer: PreTrainedTokenizerBase | None = None
        self.image_token = IMAGE_TOKEN
        self.image_token_id = cast(int, tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))  # one token, one id

    def __call__(
        self,
        documents: Document | Sequence[Document] | None = None,
        complete: bool = False,
        padding_side: PaddingSide | None = None,
        max_length: int | None = None,
        distinct_images: bool = False,
        *,
        text: str | Sequence[str] | None = None,
        images: Any = None,
        **pipeline_options: Any,
    ) -> Batch | BatchFeature:
        """A batch of documents, padded left for prompts and right for complete documents by default.

        complete: the documents end here (end token; `max_length` cuts). Otherwise they are prompts (a longer
        one is an error). distinct_images: an image that occurs twice is one entry of `pixel_values`.
        With `text` (`<image>` marks) and `images` instead of documents, returns what a pipeline hands to
        `generate`: a `BatchFeature` of prompts, without labels. Errors: `FlamingoError` naming the document.
        """
        if documents is None:
            _check_options(pipeline_options)
            template = self.template
            if pipeline_options.get("add_special_tokens") is False or self._is_begun(text):
                template = replace(template, begin=False)
            encoded = self.encode_all(interleave(text, images), False, max_length, template)
            batch = self.collate(encoded, padding_side or "left")
            return BatchFeature({name: batch[name] for name in self.model_input_names})
        if text is not None or images is not None or pipeline_options:
            extra = ", ".join(["text", "images", *pipeline_options])
            raise FlamingoError(
                f"the processor takes documents, or text and images, not both (got {extra} too)"
            )
        encoded = self.encode_all(documents, complete, max_length)
        return self.collate(encoded, padding_side or ("right" if complete else "left"), distinct_images)

    def use_template(self, template: Template) -> None:
        """Writes documents, and chat messages too, by another template from now on."""
        self.template = template
        self.chat_template = _chat_template(self.tokenizer, template)

    def encode(
        self,
        document: Document,
        complete: bool = False,
        max_length: int | None = None,
        name: str = "document",
        template: Template | None = None,
    ) -> Encoded:
        """Ids, labels and media index of one document; see `text.tokenizer.encode`."""
        encoded = encode(document, self.tokenizer, template or self.template, complete, max_length, name)
        if self.connector_tokenizer is None:
            return encoded
        return replace(encoded, connector_text=instruction_ids(document, self.connector_tokenizer, complete))

    def encode_all(
        self,
        documents: Document | Sequence[Document],
        complete: bool = False,
        max_length: int | None = None,
        template: Template | None = None,
    ) -> list[Encoded]:
        """Each document encoded under a name that says which it is, by the processor's template if none is given."""
        documents = [documents] if isinstance(documents, Document) else documents
        names = [document_name(document, i) for i, document in enumerate(documents)]
        return [
            self.encode(document, complete, max_length, name, template)
            for document, name in zip(documents, names, strict=True)
        ]

    # Any: the options differ between the versions of transformers.
    def apply_chat_template(self, conversation: Any, *args: Any, **options: Any) -> Any:
        """transformers' own, over texts and images: the written chat, or with `tokenize` and `return_dict` what
        `generate` takes. Errors: `FlamingoError` naming the message for contents of any other kind.
        """
        check_messages(conversation)
        if options.get("tokenize") and self.template.conversation is not None:
            # What begins a conversation, a conversation template writes itself.
            options.setdefault("add_special_tokens", False)
        return super().apply_chat_template(conversation, *args, **options)

    def _is_begun(self, text: str | Sequence[str] | None) -> bool:
        """Has a chat template written the begin token already?"""
        texts = [text] if isinstance(text, str) else list(text or [])
        begin = self.tokenizer.bos_token
        return begin is not None and bool(texts) and all(t.startswith(str(begin)) for t in texts)

    def collate(
        self,
        encoded: Sequence[Encoded],
        padding_side: PaddingSide = "right",
        distinct_images: bool = False,
        places: Sequence[tuple[int, int]] | None = None,
        pixels: Tensor | None = None,
    ) -> Batch:
        """Pads to the longest, counts the images through, decodes and transforms them.

        places: the (row, start) of each document where they share rows (`data.packing`), which must leave no row
        empty; the batch then has `segment_ids` and `media_first`. pixels (m c h w): of all images in
        order, when they have been decoded already. Errors: `FlamingoError` for places with padding on the left.
        """
        if not encoded:
            raise FlamingoError("a batch needs at least one document, got none")
        if padding_side not in ("left", "right"):
            raise FlamingoError(f"padding_side is {padding_side!r}; expected left or right")
        if places is not None and padding_side == "left":
            raise FlamingoError("packed rows are padded on the right; ask for padding_side='right'")
        for document in encoded:
            _check_marks(document, self.image_token_id, self.template.image_tokens)
        lengths = [len(document) for document in encoded]
        located = [(row, 0) for row in range(len(encoded))] if places is None else places
        numbers, owners = _number_images(encoded, distinct_images)
        width = max(start + length for (_, start), length in zip(located, lengths, strict=True))
        shape = (1 + max(row for row, _ in located), width)
        input_ids = torch.full(shape, self.tokenizer.pad_token_id, dtype=torch.int64)
        labels = torch.full(shape, IGNORED, dtype=torch.int64)
        media_index = torch.full(shape, NO_IMAGE, dtype=torch.int64)
        media_first = torch.full(shape, NO_IMAGE, dtype=torch.int64)
        segment_ids = torch.full(shape, NO_SEGMENT, dtype=torch.int64)
        attention_mask = torch.zeros(shape, dtype=torch.bool)
        position_ids = torch.zeros(shape, dtype=torch.int64)
        for i, (document, number, (row, start)) in enumerate(zip(encoded, numbers, located, strict=True)):
            t = len(document)
            where = slice(shape[1] - t, None) if padding_side == "left" else slice(start, start + t)
            input_ids[row, where] = torch.tensor(document.input_ids)
            labels[row, where] = torch.tensor(document.labels)
            # Index -1 reads the last entry of `number`, which is -1.
            media_index[row, where] = torch.tensor([*number, NO_IMAGE])[torch.tensor(document.media_index)]
            media_first[row, where] = number[0] if number else NO_IMAGE
            segment_ids[row, where] = i
            attention_mask[row, where] = True
            position_ids[row, where] = torch.arange(t)
        more = {"segment_ids": segment_ids, "media_first": media_first} if places is not None else {}
        more |= self.connector_text([document.connector_text for _, document in owners])
        if pixels is None:
            pixels = self._pixels(owners)
        return Batch(input_ids, attention_mask, position_ids, labels, pixels, media_index, **more)

    def connector_text(self, texts: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """The fields of a batch for what the connector reads beside each image; none where it reads nothing."""
        if self.connector_tokenizer is None:
            return {}
        return pad_texts(texts, self.connector_tokenizer.pad_token_id)

    def _pixels(self, images: Sequence[tuple[Image, Encoded]]) -> Tensor:
        height, width = self.image_transform.size
        pixels = torch.empty(len(images), 3, height, width)
        for i, (image, document) in enumerate(images):
            try:
                pixels[i] = self.image_transform(image)
            except SampleError as error:
                raise SampleError(f"{document.name}: {error}", error.reason) from error
        return pixels

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        """The marks that one image becomes (transformers' name for it)."""
        return IMAGE_TOKEN * self.template.image_tokens

    # transformers annotates a plain attribute.
    @property
    def image_processor(self) -> Self:  # pyrefly: ignore[bad-override]
        """This processor: it prepares its images itself. Pipelines ask for it when they batch."""
        return self

    @property
    def model_input_names(self) -> list[str]:
        names = ["input_ids", "attention_mask", "pixel_values", "media_index"]
        return (
            names
            if self.connector_tokenizer is None
            else [*names, "connector_text_ids", "connector_text_mask"]
        )

    def to_dict(self) -> dict[str, Any]:
        """What `save_pretrained` writes to `processor_config.json`: numbers and names only."""
        return {
            "processor_class": type(self).__name__,
            "image_transform": asdict(self.image_transform),
            "template": self.template.to_dict(),
        }

    def save_pretrained(self, save_directory: str | Path, *args: Any, **options: Any) -> Any:
        """As transformers', and the connector's tokenizer in a folder of its own."""
        written = super().save_pretrained(save_directory, *args, **options)
        if self.connector_tokenizer is not None:
            self.connector_tokenizer.save_pretrained(Path(save_directory) / CONNECTOR_TOKENIZER)
        return written

    # Narrower than transformers': everything but the directory is given by name.
    @classmethod
    def from_pretrained(  # pyrefly: ignore[bad-override]
        cls, directory: str | Path, **options: Any
    ) -> Self:
        """A processor that `save_pretrained` wrote. Code in the directory is never run.

        Errors: `FlamingoError` naming the directory when files are missing or damaged.
        """
        options.pop("trust_remote_code", None)
        if Path(directory).exists() and not (Path(directory) / "processor_config.json").is_file():
            raise FlamingoError(f"{directory}: holds no processor_config.json; expected a saved processor")
        try:
            processor = super().from_pretrained(directory, trust_remote_code=False, **options)
            known = f"{CONNECTOR_TOKENIZER}/tokenizer_config.json"
            if cached_file(str(directory), known, _raise_exceptions_for_missing_entries=False) is not None:
                processor.connector_tokenizer = AutoTokenizer.from_pretrained(
                    directory, subfolder=CONNECTOR_TOKENIZER, trust_remote_code=False
                )
            return processor
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise FlamingoError(f"{directory}: the processor cannot be loaded ({error})") from error


def document_name(document: Document, position: int) -> str:
    """What messages call a document: its place in the list, and its name if it has one."""
    if not isinstance(document, Document):
        raise FlamingoError(f"document {position} is a {type(document).__name__}; expected a Document")
    return f"document {position}" if document.name is None else f"document {position} ({document.name})"


def interleave(text: str | Sequence[str] | None, images: Any = None) -> list[Document]:
    """Texts with `<image>` marks and their images, as documents. `images`: one, a flat list, a list per text.

    Errors: `FlamingoError` naming the document whose marks and images differ in number.
    """
    texts = [text] if isinstance(text, str) else list(text or [])
    if not texts:
        raise FlamingoError(
            "the processor needs documents, or text with <image> marks and images; got neither"
        )
    parts = [t.split(IMAGE_TOKEN) for t in texts]
    groups = _image_groups(images, [len(p) - 1 for p in parts])
    documents = []
    for i, (words, group) in enumerate(zip(parts, groups, strict=True)):
        if len(words) - 1 != len(group):
            found = f"{len(words) - 1} {IMAGE_TOKEN} marks but {len(group)} images"
            raise FlamingoError(f"document {i}: {found}; give one image per mark")
        segments: list[Image | str] = [words[0]]
        for image, following in zip(group, words[1:], strict=True):
            segments += [image if isinstance(image, Image) else Image(image), following]
        documents.append(Document([s for s in segments if s != ""]))
    return documents


def _image_groups(images: Any, marks: list[int]) -> list[list[Any]]:
    if images is None:
        return [[] for _ in marks]
    if not isinstance(images, list | tuple):
        images = [images]
    if any(isinstance(group, list | tuple) for group in images):
        if len(images) != len(marks):
            raise FlamingoError(
                f"{len(marks)} texts but {len(images)} lists of images; give one list per text"
            )
        return [list(group) if isinstance(group, list | tuple) else [group] for group in images]
    if len(marks) == 1:
        return [list(images)]
    # A flat list is dealt out by the marks; the last text gets what is left, so that a surplus is noticed.
    ends = [sum(marks[: i + 1]) for i in range(len(marks) - 1)]
    return [list(images[a:b]) for a, b in zip([0, *ends], [*ends, len(images)], strict=True)]


def _check_marks(document: Encoded, image_token_id: int, image_tokens: int) -> None:
    marks = document.input_ids.count(image_token_id)
    if marks != len(document.images) * image_tokens:
        raise FlamingoError(
            f"{document.name}: {marks} {IMAGE_TOKEN} ids for {len(document.images)} images; expected {image_tokens} for "
            "each (template.image_tokens): encode it with the processor that belongs to the model"
        )


def _number_images(
    encoded: Sequence[Encoded], distinct: bool
) -> tuple[list[list[int]], list[tuple[Image, Encoded]]]:
    """Each document's image numbers in the batch; and all images in order, with their document."""
    owners: list[tuple[Image, Encoded]] = []
    numbers: list[list[int]] = []
    seen: dict[Any, int] = {}
    for document in encoded:
        row = []
        # A key hashes the image's bytes, so it is made only where somebody asks whether two are the same.
        keys = document.media_keys if distinct else [None] * len(document.images)
        for image, key in zip(document.images, keys, strict=True):
            number = seen.setdefault(key, len(owners)) if distinct else len(owners)
            if number == len(owners):
                owners.append((image, document))
            row.append(number)
        numbers.append(row)
    return numbers, owners


def _component(kind: type[Component], value: Component | dict[str, Any] | None) -> Component:
    if isinstance(value, kind):
        return value
    try:
        return kind(**(value or {}))
    except TypeError as error:
        raise FlamingoError(f"processor: {kind.__name__} cannot be made from {value!r} ({error})") from error


def _chat_template(tokenizer: PreTrainedTokenizerBase, template: Template) -> str:
    """How chat messages are written: as conversations are, else by the tokenizer's own template, with marks for images."""
    conversation = template.conversation
    own = getattr(tokenizer, "chat_template", None)
    if conversation is None:
        return chat_template_for(own)
    if conversation.is_tokenizers:
        return chat_template_for(own, conversation.image_joint, conversation.image_label)
    return chat_template_of(conversation)


def _check_options(options: dict[str, Any]) -> None:
    # What pipelines and apply_chat_template pass along, and what it must be; padding is always done here.
    allowed = {
        "return_tensors": ("pt", None),
        "padding": (True, "longest"),
        "add_special_tokens": (True, False, None),
        "videos": (None,),
        "audio": (None,),
    }
    for name, value in options.items():
        if name not in allowed or value not in allowed[name]:
            raise FlamingoError(
                f"the processor does not take {name}={value!r}; it takes {', '.join(allowed)}"
            )
