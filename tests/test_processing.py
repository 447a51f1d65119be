"""The processor: documents to a batch, saved and loaded whole."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import BatchFeature, PreTrainedTokenizerFast

from flamingo_lite.data.packing import pack
from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import FlamingoError
from flamingo_lite.image_transform import ImageTransform
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.text.template import Template


def picture(seed: int, width: int = 8, height: int = 8) -> PIL.Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(values)


PICTURES = [Image(picture(seed)) for seed in range(5)]

texts = st.builds(Text, st.text(alphabet="ab =", max_size=4), loss=st.booleans(), ends_chunk=st.booleans())
documents = st.lists(st.one_of(texts, st.sampled_from(PICTURES)), max_size=6).map(Document)
batches = st.lists(documents, min_size=1, max_size=4)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<|endoftext|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )


@pytest.fixture(scope="module")
def processor() -> VisionLanguageProcessor:
    return VisionLanguageProcessor(byte_tokenizer(), ImageTransform(size=(8, 8), mean=(0.1, 0.2, 0.3)))


def test_a_batch_by_hand(processor: VisionLanguageProcessor) -> None:
    documents = [
        Document([Text("a", loss=False), PICTURES[0], Text("b", ends_chunk=True)]),
        Document(["c"]),
        Document([PICTURES[1]]),
    ]
    bos, a, b, c, image, chunk, pad = processor.tokenizer.convert_tokens_to_ids(
        ["<|endoftext|>", "a", "b", "c", "<image>", "<|endofchunk|>", "<|pad|>"]
    )
    batch = processor(documents, complete=True)
    assert batch.input_ids.tolist() == [
        [bos, a, image, b, chunk, bos],
        [bos, c, bos, pad, pad, pad],
        [bos, image, bos, pad, pad, pad],
    ]
    no = -100
    assert batch.labels.tolist() == [
        [no, no, no, b, chunk, bos],
        [no, c, bos, no, no, no],
        [no, no, bos, no, no, no],
    ]
    assert batch.media_index.tolist() == [
        [-1, -1, 0, 0, 0, 0],
        [-1, -1, -1, -1, -1, -1],
        [-1, 1, 1, -1, -1, -1],
    ]
    assert batch.attention_mask.tolist() == [[True] * 6, [True] * 3 + [False] * 3, [True] * 3 + [False] * 3]
    assert batch.position_ids[0].tolist() == [0, 1, 2, 3, 4, 5]
    assert torch.equal(batch.pixel_values[1], processor.image_transform(PICTURES[1]))


@settings(max_examples=40, deadline=None)
@given(batches, st.booleans())
def test_padding_side_moves_rows_and_changes_nothing_in_them(
    processor: VisionLanguageProcessor, documents: list[Document], complete: bool
) -> None:
    left, right = (processor(documents, complete, padding_side=side) for side in ("left", "right"))
    for name in ("input_ids", "labels", "media_index", "position_ids"):
        rows = zip(left[name], left.attention_mask, right[name], right.attention_mask, strict=True)
        assert all(torch.equal(a[m], b[n]) for a, m, b, n in rows)
    for batch in (left, right):
        assert (batch.media_index[~batch.attention_mask] == -1).all()
        assert (batch.labels[~batch.attention_mask] == -100).all()
    assert torch.equal(left.pixel_values, right.pixel_values)


@settings(max_examples=40, deadline=None)
@given(batches, st.booleans())
def test_a_row_is_what_its_document_gives_alone(
    processor: VisionLanguageProcessor, documents: list[Document], complete: bool
) -> None:
    batch = processor(documents, complete)
    for row, document in enumerate(documents):
        mask = batch.attention_mask[row]
        alone, taken = processor(document, complete), batch.rows([row])
        assert torch.equal(taken.pixel_values, alone.pixel_values)
        for name in ("input_ids", "labels", "media_index", "position_ids"):
            assert torch.equal(taken[name][0][mask], alone[name][0])


@settings(max_examples=40, deadline=None)
@given(batches, st.booleans())
def test_packed_rows_hold_every_document_as_it_is_alone(
    processor: VisionLanguageProcessor, documents: list[Document], complete: bool
) -> None:
    encoded = processor.encode_all(documents, complete)
    places = pack([len(document) for document in encoded])
    apart, packed = processor.collate(encoded), processor.collate(encoded, places=places)
    assert packed.documents == apart.documents == len(documents)
    assert packed.input_ids.shape[1] == apart.input_ids.shape[1] and len(packed) <= len(apart)
    assert torch.equal(packed.pixel_values, apart.pixel_values)
    assert packed.segment_ids is not None and packed.media_first is not None
    for i in range(len(documents)):
        here, alone = packed.segment_ids == i, apart.attention_mask[i]
        for name in ("input_ids", "labels", "media_index", "position_ids"):
            assert torch.equal(packed[name][here], apart[name][i][alone])
        seen = packed.media_index[here][packed.media_index[here] >= 0]
        assert (packed.media_first[here] == (int(seen.min()) if len(seen) else -1)).all()
    assert torch.equal(packed.segment_ids >= 0, packed.attention_mask)
    for name, nothing in (("labels", -100), ("media_index", -1), ("media_first", -1)):
        assert (packed[name][~packed.attention_mask] == nothing).all()


def test_packing_to_the_left_is_refused(processor: VisionLanguageProcessor) -> None:
    with pytest.raises(FlamingoError, match="padding_side='right'"):
        processor.collate(processor.encode_all([Document(["a"])]), padding_side="left", places=[(0, 0)])


def test_the_processor_decodes_large_images_whole(processor: VisionLanguageProcessor) -> None:
    buffer = io.BytesIO()
    picture(0, 64, 48).save(buffer, "JPEG")
    image = Image(buffer.getvalue())
    exact = processor.image_transform(image)
    assert not torch.equal(processor.image_transform(image, draft=True), exact)
    for complete in (True, False):
        assert torch.equal(processor([Document([image, "a"])], complete=complete).pixel_values[0], exact)


@settings(max_examples=30, deadline=None)
@given(batches)
def test_distinct_images_are_stored_once_and_seen_alike(
    processor: VisionLanguageProcessor, documents: list[Document]
) -> None:
    every, distinct = processor(documents), processor(documents, distinct_images=True)
    assert len(distinct.pixel_values) == len({image for d in documents for image in d.images})
    assert torch.equal(every.media_index == -1, distinct.media_index == -1)
    seen = every.media_index >= 0
    assert torch.equal(
        every.pixel_values[every.media_index[seen]], distinct.pixel_values[distinct.media_index[seen]]
    )


def test_prompts_are_padded_left_and_complete_documents_right(processor: VisionLanguageProcessor) -> None:
    documents = [Document(["a"]), Document(["abc"])]
    assert processor(documents).attention_mask[0].tolist() == [False, False, True, True]
    assert processor(documents, complete=True).attention_mask[0].tolist() == [True, True, True, False, False]


def test_a_batch_without_images_has_the_right_shape(processor: VisionLanguageProcessor) -> None:
    assert processor(Document(["a"])).pixel_values.shape == (0, 3, 8, 8)


def test_a_saved_processor_comes_back_the_same(tmp_path: Path) -> None:
    before = VisionLanguageProcessor(
        byte_tokenizer(), ImageTransform(size=(8, 8), resize_mode="squash"), Template(image_tokens=3)
    )
    before.save_pretrained(tmp_path / "a b")
    after = VisionLanguageProcessor.from_pretrained(tmp_path / "a b")
    assert (after.image_transform, after.template) == (before.image_transform, before.template)
    documents = [Document([PICTURES[0], Text("é 3", ends_chunk=True)]), Document(["a"])]
    old, new = before(documents, complete=True), after(documents, complete=True)
    assert all(torch.equal(old[name], new[name]) for name in {**old})
    assert {path.suffix for path in (tmp_path / "a b").iterdir()} <= {".json", ".jinja"}


def test_a_saved_processor_runs_no_code_of_its_directory(tmp_path: Path) -> None:
    VisionLanguageProcessor(byte_tokenizer(), ImageTransform(size=(8, 8))).save_pretrained(tmp_path)
    marker = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: pass\n")
    for name, kind in (
        ("processor_config.json", "AutoProcessor"),
        ("tokenizer_config.json", "AutoTokenizer"),
    ):
        config = json.loads((tmp_path / name).read_text())
        config["auto_map"] = {kind: ["evil.Evil", "evil.Evil"] if kind == "AutoTokenizer" else "evil.Evil"}
        (tmp_path / name).write_text(json.dumps(config))
    VisionLanguageProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    assert not marker.exists()


@pytest.mark.parametrize("damage", ["missing", "no json", "wrong value", "no tokenizer"])
def test_a_damaged_processor_is_refused_by_its_directory(damage: str, tmp_path: Path) -> None:
    directory = tmp_path / "saved"
    VisionLanguageProcessor(byte_tokenizer(), ImageTransform(size=(8, 8))).save_pretrained(directory)
    config = directory / "processor_config.json"
    if damage == "missing":
        config.unlink()
    elif damage == "no json":
        config.write_text("{")
    elif damage == "wrong value":
        config.write_text(json.dumps({"image_transform": {"size": [8, 8], "colour": 3}}))
    else:
        for path in directory.glob("tokenizer*"):
            path.unlink()
    with pytest.raises(FlamingoError, match="saved|ImageTransform"):
        VisionLanguageProcessor.from_pretrained(directory)


def test_the_call_of_a_pipeline_equals_that_of_documents(processor: VisionLanguageProcessor) -> None:
    called = processor(
        text=["<image>ab", "c<image><image>"],
        images=[picture(0), picture(1), picture(2)],
        return_tensors="pt",
    )
    documents = [Document([PICTURES[0], "ab"]), Document(["c", PICTURES[1], PICTURES[2]])]
    assert isinstance(called, BatchFeature)
    assert set(called) == set(processor.model_input_names)
    assert all(torch.equal(called[name], processor(documents)[name]) for name in called)
    nested = processor(text=["<image>ab", "c<image><image>"], images=[[picture(0)], [picture(1), picture(2)]])
    assert all(torch.equal(called[name], nested[name]) for name in called)


@pytest.mark.parametrize(
    "text, images, named",
    [
        ("<image> and <image>", [0], "document 0: 2 <image> marks but 1 images"),
        ("none", [0], "document 0: 0 <image> marks but 1 images"),
        ("<image>", None, "document 0: 1 <image> marks but 0 images"),
        (["<image>", "<image>"], [0], "document 1: 1 <image> marks but 0 images"),
        (["<image>", "a"], [0, 1], "document 1: 0 <image> marks but 1 images"),
        (["<image>", "a"], [[0]], "2 texts but 1 lists"),
    ],
)
def test_marks_and_images_that_differ_in_number_are_refused(
    processor: VisionLanguageProcessor, text: str | list[str], images: list | None, named: str
) -> None:
    pictures = images and [[PICTURES[j] for j in i] if isinstance(i, list) else PICTURES[i] for i in images]
    with pytest.raises(FlamingoError, match=named):
        processor(text=text, images=pictures)


def test_errors_name_the_document(processor: VisionLanguageProcessor) -> None:
    good = Document(["a"])
    broken = io.BytesIO()
    picture(0).save(broken, "JPEG")
    cases = {
        r"document 1: segment 0": Document(["<image>"]),
        r"document 1 \(shard/7\): the prompt has 6 tokens": Document(["abcde"], name="shard/7"),
        r"document 1: x.jpg: not a readable image": Document([Image(broken.getvalue()[:200], name="x.jpg")]),
        r"document 1 is a str": "text",
    }
    for message, document in cases.items():
        with pytest.raises(FlamingoError, match=message):
            processor([good, document], max_length=5)


@pytest.mark.parametrize(
    "options",
    [{}, {"documents": []}, {"text": "a", "truncation": True}, {"documents": [Document(["a"])], "text": "a"}],
)
def test_a_call_that_makes_no_sense_is_refused(processor: VisionLanguageProcessor, options: dict) -> None:
    with pytest.raises(FlamingoError):
        processor(**options)


def test_the_image_mark_is_known_to_transformers(processor: VisionLanguageProcessor) -> None:
    assert processor.image_token == "<image>"
    assert processor.tokenizer.convert_ids_to_tokens(processor.image_token_id) == "<image>"
    assert processor.replace_image_token({}, 0) == "<image>"


@pytest.mark.parametrize("marks", [2, 4])
def test_marks_that_do_not_fit_the_images_are_refused_by_the_documents_name(marks: int) -> None:
    processor = VisionLanguageProcessor(
        byte_tokenizer(), ImageTransform(size=(8, 8)), template=Template(image_tokens=3)
    )
    fits, other = (processor.encode(Document([PICTURES[i], "ab"]), name=f"shard/{i}") for i in range(2))
    text = [i for i in other.input_ids if i != processor.image_token_id]
    ids = [processor.image_token_id] * marks + text
    broken = replace(other, input_ids=ids, labels=[-100] * len(ids), media_index=[0] * len(ids))
    found = f"^shard/1: {marks} <image> ids for 1 images; expected 3 for each"
    with pytest.raises(FlamingoError, match=found):
        processor.collate([fits, broken])
