"""BLIP-2 and InstructBLIP directories against transformers' own classes, read and written."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
import references as ref
import torch
from references import refused
from safetensors.torch import load_file, save_file
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessor,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    LlamaConfig,
    OPTConfig,
    T5Config,
)

import flamingo_lite as fl
from flamingo_lite.batch import Batch
from flamingo_lite.checkpoints.formats import export
from flamingo_lite.errors import FlamingoError

IMAGE = ref.WORDS
FAMILIES = {
    "blip2": (Blip2Config, Blip2ForConditionalGeneration, Blip2Processor),
    "instructblip": (InstructBlipConfig, InstructBlipForConditionalGeneration, InstructBlipProcessor),
}
CASES = [(name, seed) for name in FAMILIES for seed in range(25)]
FEW = [(name, seed) for name in FAMILIES for seed in range(4)]


def language(draw: Random, kind: str) -> Any:
    heads, vocabulary = draw.choice([1, 2, 4]), IMAGE + draw.choice([1, 4])
    if kind == "opt":
        return OPTConfig(
            vocab_size=vocabulary, hidden_size=8 * heads, word_embed_proj_dim=8 * heads, ffn_dim=draw.choice([16, 40]),
            num_hidden_layers=draw.choice([1, 2]), num_attention_heads=heads, max_position_embeddings=256, pad_token_id=0,
            bos_token_id=1, eos_token_id=2, do_layer_norm_before=draw.random() < 0.8,
        )  # fmt: skip
    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=8 * heads, intermediate_size=24, num_hidden_layers=draw.choice([1, 2]),
        num_attention_heads=heads, num_key_value_heads=draw.choice([1, heads]), max_position_embeddings=256,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip


def drawn_config(name: str, draw: Random) -> Any:
    vision = {
        "hidden_size": draw.choice([12, 24]), "intermediate_size": 20, "num_hidden_layers": draw.choice([1, 2]),
        "num_attention_heads": draw.choice([2, 3]), "image_size": 16, "patch_size": draw.choice([4, 8]),
        "qkv_bias": draw.random() < 0.7,
    }  # fmt: skip
    former = {
        "hidden_size": 16, "num_hidden_layers": draw.choice([1, 2, 3]), "num_attention_heads": draw.choice([1, 2, 4]),
        "intermediate_size": draw.choice([12, 64]), "cross_attention_frequency": draw.choice([1, 2]),
        "hidden_act": draw.choice(["gelu", "relu"]),
    }  # fmt: skip
    if name == "instructblip":
        former |= {"vocab_size": IMAGE + 2, "max_position_embeddings": 96}
    return FAMILIES[name][0](
        vision_config=vision,
        qformer_config=former,
        text_config=language(draw, draw.choice(["opt", "opt", "llama"])),
        num_query_tokens=draw.choice([1, 3, 5]),
        image_token_index=IMAGE,
    )


def write(name: str, reference: Any, directory: Path) -> None:
    reference.save_pretrained(directory)
    images = BlipImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.5] * 3, image_std=[0.3] * 3)
    former = [ref.tokenizer()] if name == "instructblip" else []
    FAMILIES[name][2](
        images, ref.tokenizer("<image>"), *former, num_query_tokens=reference.config.num_query_tokens
    ).save_pretrained(directory)


@cache
def pair(name: str, seed: int) -> ref.Pair:
    directory = ref.folder()
    reference = ref.randomised(FAMILIES[name][1](drawn_config(name, Random(seed))), seed)
    write(name, reference, directory)
    return ref.Pair(directory, reference, *fl.load(directory))


def theirs_of(batch: Batch) -> dict[str, Any]:
    """A batch under the names of the reference, which counts positions itself."""
    taken = {name: value for name, value in ref.with_position_ids(batch).items() if name != "position_ids"}
    if batch.connector_text_ids is not None and batch.connector_text_mask is not None:
        taken["qformer_input_ids"] = batch.connector_text_ids
        taken["qformer_attention_mask"] = batch.connector_text_mask.long()
    return taken


@pytest.mark.parametrize(("name", "seed"), CASES)
@torch.no_grad()
def test_logits_equal_the_reference(name: str, seed: int) -> None:
    found, draw = pair(name, seed), Random(seed)
    batch = found.processor(ref.interleaved(draw), padding_side=draw.choice(["left", "right"]))
    is_text = batch.attention_mask
    expected = found.theirs(**theirs_of(batch)).logits[is_text]
    torch.testing.assert_close(
        found.model(**batch).logits[is_text], expected, atol=ref.TOLERANCE, rtol=ref.TOLERANCE
    )


@pytest.mark.parametrize(("name", "seed"), FEW)
@torch.no_grad()
def test_greedy_generations_equal_the_reference(name: str, seed: int) -> None:
    found, draw = pair(name, seed), Random(seed)
    prompts = [fl.Document([ref.picture(draw), ref.words(draw)]) for _ in range(3)]
    batch = found.processor(prompts)
    options = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": [IMAGE]}
    expected = found.theirs.generate(**theirs_of(batch), **options)
    assert torch.equal(found.model.generate(**batch, **options), expected)


@pytest.mark.parametrize(("name", "seed"), FEW)
def test_the_processor_writes_what_the_reference_writes(name: str, seed: int) -> None:
    found, draw = pair(name, seed), Random(seed)
    # Of the encoder's own size: resizing is compared in test_image_transform.py.
    images, texts = [ref.picture(draw, 16) for _ in range(2)], [ref.words(draw) for _ in range(2)]
    mine = theirs_of(found.processor([fl.Document([i, t]) for i, t in zip(images, texts, strict=True)]))
    theirs = FAMILIES[name][2].from_pretrained(found.directory)
    theirs.tokenizer.padding_side = "left"
    expected = dict(
        theirs(images=[i.pil() for i in images], text=texts, padding="longest", return_tensors="pt")
    )
    ids = [name for name in expected if name != "pixel_values"]
    # Their padding stands between the image and the text.
    rows = [
        {n: [int(x) for x in batch[n][row]] if n.startswith("qformer") else real(batch, n, row) for n in ids}
        for batch in (mine, expected)
        for row in range(2)
    ]
    assert rows[:2] == rows[2:]
    torch.testing.assert_close(mine["pixel_values"], expected["pixel_values"], atol=1e-5, rtol=0)


def real(batch: dict[str, Any], name: str, row: int) -> list[int]:
    return batch[name][row][batch["attention_mask"][row].bool()].tolist()


@pytest.mark.parametrize(("name", "seed"), FEW)
@torch.no_grad()
def test_what_is_read_and_written_is_the_reference_again(name: str, seed: int, tmp_path: Path) -> None:
    found = pair(name, seed)
    export(found.model, found.processor, tmp_path / "out", format=name)
    again, info = FAMILIES[name][1].from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    state, known = again.state_dict(), found.theirs.state_dict()
    assert state.keys() == known.keys() and all(torch.equal(state[key], known[key]) for key in known)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_our_own_directory_of_it_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    found = pair(name, 1)
    fl.save(found.model, found.processor, tmp_path / "ours")
    model, processor = fl.load(tmp_path / "ours")
    documents = ref.interleaved(Random(1))
    assert torch.equal(model(**processor(documents)).logits, found.model(**found.processor(documents)).logits)


@torch.no_grad()
def test_a_checkpoint_without_an_image_token_gives_the_logits_of_one_with(tmp_path: Path) -> None:
    text = OPTConfig(
        vocab_size=IMAGE + 1, hidden_size=16, word_embed_proj_dim=16, num_hidden_layers=1, ffn_dim=16,
        num_attention_heads=2, max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    config = drawn_config("blip2", Random(0))
    config.text_config = text
    reference = ref.randomised(Blip2ForConditionalGeneration(config), 0)
    write("blip2", reference, tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    embedding = "language_model.model.decoder.embed_tokens.weight"
    state[embedding] = state[embedding][:IMAGE].clone()
    save_file(state, path, metadata={"format": "pt"})
    ref.tokenizer().save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values["text_config"]["vocab_size"] = IMAGE
    del values["image_token_index"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    model, processor = fl.load(tmp_path)
    batch = processor(ref.interleaved(Random(0)))
    is_text = batch.attention_mask
    found, expected = (
        f(**x).logits[is_text][:, :IMAGE] for f, x in ((model, batch), (reference, theirs_of(batch)))
    )
    torch.testing.assert_close(found, expected, atol=ref.TOLERANCE, rtol=ref.TOLERANCE)


# ---- the instruction


@torch.no_grad()
def test_fl_generate_reads_the_instruction_of_each_document() -> None:
    found, draw = pair("instructblip", 2), Random(5)
    image = ref.picture(draw)
    documents = [
        fl.Document([image, "what?"]),
        fl.Document([image, "where is the bed"]),
        fl.Document(["abc"]),
    ]
    together = fl.generate(found.model, found.processor, documents, max_new_tokens=6)
    apart = [fl.generate(found.model, found.processor, [d], max_new_tokens=6)[0] for d in documents]
    assert together == apart


def test_an_answer_that_is_trained_on_is_no_instruction() -> None:
    processor = pair("instructblip", 1).processor
    question = fl.Text("what?", loss=False)
    whole = processor.encode(fl.Document([question, "a bed"]), complete=True)
    assert whole.connector_text == processor.encode(fl.Document([question])).connector_text


def test_rows_of_a_batch_take_their_instructions_along() -> None:
    processor, draw = pair("instructblip", 1).processor, Random(3)
    documents = [fl.Document([ref.picture(draw), text]) for text in ("abc", "de", "fgh")]
    chosen = processor(documents).rows([2, 0])  # images stay in the order of the batch
    alone = processor([documents[0], documents[2]])
    assert chosen.connector_text_ids is not None and alone.connector_text_ids is not None
    assert torch.equal(chosen.connector_text_ids, alone.connector_text_ids)


def test_one_image_under_two_instructions_is_two(tmp_path: Path) -> None:
    processor, image = pair("instructblip", 1).processor, ref.picture(Random(4))
    documents = [fl.Document([image, text]) for text in ("abc", "de", "abc")]
    assert len(processor(documents, distinct_images=True).pixel_values) == 2


def test_a_text_for_a_connector_that_reads_none_is_refused() -> None:
    found = pair("blip2", 1)
    batch = found.processor([fl.Document([ref.picture(Random(1)), "abc"])])
    text = torch.ones(1, 3, dtype=torch.int64)
    with pytest.raises(FlamingoError, match="reads no text"):
        found.model(**batch, connector_text_ids=text)


# ---- bad input


def test_an_encoder_decoder_is_refused_by_name(tmp_path: Path) -> None:
    text = T5Config(vocab_size=IMAGE + 1, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8)
    config = drawn_config("blip2", Random(0))
    Blip2Config(
        vision_config=config.vision_config.to_dict(),
        qformer_config=config.qformer_config.to_dict(),
        text_config=text,
    ).save_pretrained(tmp_path)
    assert "'t5'" in refused(tmp_path)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    write("blip2", Blip2ForConditionalGeneration(drawn_config("blip2", Random(0))), tmp_path)
    ref.tokenizer("<one>", "<image>").save_pretrained(tmp_path)
    assert "image_token_index" in refused(tmp_path)


def test_weights_are_refused_by_group(tmp_path: Path) -> None:
    write("blip2", Blip2ForConditionalGeneration(drawn_config("blip2", Random(0))), tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    state["stranger"] = state.pop("language_projection.bias")
    save_file(state, path, metadata={"format": "pt"})
    said = refused(tmp_path)
    assert "1 missing: language_projection.bias" in said and "1 superfluous: stranger" in said


def test_an_instructblip_directory_without_its_second_tokenizer_is_refused(tmp_path: Path) -> None:
    write(
        "instructblip",
        InstructBlipForConditionalGeneration(drawn_config("instructblip", Random(0))),
        tmp_path,
    )
    for path in (tmp_path / "qformer_tokenizer").iterdir():
        path.unlink()
    assert "qformer_tokenizer" in refused(tmp_path)


@pytest.mark.parametrize(
    ("name", "other"), [("blip2", "instructblip"), ("instructblip", "blip2"), ("blip2", "llava")]
)
def test_a_model_that_a_format_cannot_express_is_refused_by_field(
    name: str, other: str, tmp_path: Path
) -> None:
    with pytest.raises(FlamingoError, match=f"cannot export as {other}: vision"):
        export(pair(name, 1).model, None, tmp_path / "out", format=other)
