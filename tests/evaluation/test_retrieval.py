"""Demonstrations by similarity: what is chosen, in which order, from which features, by how many processes."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flamingo_lite.checkpoints.io import load
from flamingo_lite.data.features import FeatureCache
from flamingo_lite.document import Image
from flamingo_lite.errors import FlamingoError, SampleError
from flamingo_lite.evaluation import grid
from flamingo_lite.evaluation.answering import ModelAnswers
from flamingo_lite.evaluation.answers import Generate
from flamingo_lite.evaluation.demonstrations import Example, Support, uniform_support
from flamingo_lite.evaluation.gallery import redrawn
from flamingo_lite.evaluation.grid import EvaluationConfig, Setting, seeds_of
from flamingo_lite.evaluation.results import load_samples
from flamingo_lite.evaluation.retrieval import BLOCK, Retrieval, means
from flamingo_lite.evaluation.runner import Subject, evaluate, evaluate_all, identity_of
from flamingo_lite.evaluation.selection import BY_SIMILARITY, SELECTORS, Wanted, select
from flamingo_lite.evaluation.tasks import items_of
from flamingo_lite.models.similarity import SimilarityEncoder, load_encoder, own_encoder
from flamingo_lite.training.ranks import join, started_ranks
from flamingo_lite.training.settings import TrainerConfig
from tests.training import ranks_helper

NAMES = sorted(BY_SIMILARITY)
PLACES = 24


def at(angle: float) -> Tensor:
    return torch.tensor([torch.tensor(angle).cos(), torch.tensor(angle).sin()])


class Angles:
    """An encoder for which an image of the bytes b"7", or the text "7", points at 7 of `PLACES` parts of a half turn."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.encoded: list[str] = []

    def load(self) -> SimilarityEncoder:
        return SimilarityEncoder(f"angles of {self.kind}", self.encode)

    def encode(self, items: Sequence[Image | str]) -> Tensor:
        said = [item if isinstance(item, str) else item.data.decode() for item in items]
        if any(text.startswith("broken") for text in said):
            raise SampleError("the image is broken", "image")
        self.encoded += said
        return torch.stack([at(float(text.split()[0]) * torch.pi / PLACES) for text in said])


def retrieval(**changes: Any) -> Retrieval:
    return Retrieval({kind: Angles(kind).load for kind in ("image", "text")}, **changes)


def example(name: str, image: object, question: object = "0") -> Example:
    return Example(name, (Image(str(image).encode()),), str(question), "answer")


def pool(examples: Sequence[Example], key: str = "pool") -> Support:
    return uniform_support(key, examples)


def chosen(
    query: Example,
    support: Support,
    shots: int,
    selector: str = "rices_image",
    order: str = "reversed",
    by: Retrieval | None = None,
    seed: int = 0,
) -> list[str]:
    """The ids of what is shown; reversed, the most similar comes first."""
    wanted = Wanted("task", "test", 0, seed, shots, query, support)
    selectors = {**SELECTORS, **(by or retrieval()).selectors()}
    return [found.id for found in select(wanted, selector, order, selectors)]


LINE = pool([example(f"id {i:02}", i, PLACES - i) for i in range(PLACES)])


def test_the_nearest_by_image_or_by_text_are_chosen() -> None:
    query = example("query", "4.2 of the query", 3.4)
    assert chosen(query, LINE, 3) == ["id 04", "id 05", "id 03"]
    assert chosen(query, LINE, 3, "rices_text") == ["id 21", "id 20", "id 22"]


def test_by_both_the_mean_of_the_similarities_decides() -> None:
    # In image and text: one close in both beats one that is equal in one and far in the other.
    support = pool([example("image", 8, 20), example("both", 9, 9), example("text", 20, 8)])
    assert chosen(example("query", "8 of the query", 8), support, 3, "rices_both")[0] == "both"


def test_equals_are_chosen_by_their_ids_wherever_they_lie() -> None:
    same = [example(name, f"5 {name}") for name in ("b", "d", "a", "c")]
    query = example("query", "5 of the query")
    assert chosen(query, pool(same), 2) == chosen(query, pool(same[::-1]), 2) == ["a", "b"]


@settings(deadline=None, max_examples=60)
@given(
    place=st.integers(0, PLACES - 1),
    few=st.integers(0, PLACES - 1),
    more=st.integers(0, PLACES - 1),
    name=st.sampled_from(NAMES),
    seeds=st.tuples(st.integers(0, 9), st.integers(0, 9)),
)
def test_demonstrations_are_nested_over_shots_and_the_same_under_every_seed(
    place: int, few: int, more: int, name: str, seeds: tuple[int, int]
) -> None:
    few, more = sorted((few, more))
    query, by = example("query", f"{place} of the query", place), retrieval()
    larger = chosen(query, LINE, more, name, by=by, seed=seeds[0])
    assert chosen(query, LINE, few, name, by=by, seed=seeds[1]) == larger[:few]
    assert len(set(larger)) == more


@pytest.mark.parametrize("selector", NAMES)
def test_the_query_is_kept_out_by_its_id_and_by_the_hash_of_its_image(selector: str) -> None:
    by_id = chosen(example("id 03", "3 of the query", 3), LINE, PLACES - 1, selector)
    by_hash = chosen(example("query", 3, 3), LINE, PLACES - 1, selector)
    assert set(by_id) == set(by_hash) == {f"id {i:02}" for i in range(PLACES) if i != 3}


def test_neighbours_are_looked_for_beyond_those_that_may_not_be_shown() -> None:
    copies = [example(f"copy {i:03}", "7") for i in range(200)]
    support = pool([*copies, example("far", 1), example("further", 23)])
    assert chosen(example("query", "6 of the query"), support, 3) == ["copy 000", "far", "further"]


@pytest.mark.parametrize(
    ("order", "ids"),
    [
        ("own", ["id 03", "id 05", "id 04"]),
        ("similar_last", ["id 03", "id 05", "id 04"]),
        ("reversed", ["id 04", "id 05", "id 03"]),
    ],
)
def test_orders_put_the_most_similar_where_they_say(order: str, ids: list[str]) -> None:
    assert chosen(example("query", "4.2 of the query"), LINE, 3, order=order) == ids


def test_a_random_order_moves_with_the_seed_and_shows_the_same() -> None:
    query, by = example("query", "4.2 of the query"), retrieval()
    orders = {tuple(chosen(query, LINE, 5, order="random", by=by, seed=seed)) for seed in range(8)}
    assert len(orders) > 4 and len({frozenset(order) for order in orders}) == 1


def test_a_support_smaller_than_the_shots_is_one_line_that_names_the_task() -> None:
    with pytest.raises(FlamingoError, match="task, split test: the support gave 24 .* for 25 shots"):
        chosen(example("query", "3 of the query"), LINE, 25)


@pytest.mark.parametrize(
    ("selector", "changes", "message"),
    [
        ("rices_text", {"question": " "}, "asks nothing in words.*choose rices_image"),
        ("rices_both", {"images": ()}, "has no image.*choose rices_text"),
    ],
)
def test_what_cannot_be_compared_is_one_line(selector: str, changes: dict[str, Any], message: str) -> None:
    values = {"id": "bad", "images": (Image(b"3"),), "question": "3", "answer": ""} | changes
    with pytest.raises(FlamingoError, match=f"example bad {message}"):
        chosen(example("query", "4 of the query", 4), pool([Example(**values)]), 1, selector)


@pytest.mark.parametrize("selector", ["rices_image", "rices_both"])
@pytest.mark.parametrize("broken", [["b"], ["b", "d"], ["a", "b", "c", "d"]])
def test_what_cannot_be_read_is_shown_only_behind_all_that_can(
    selector: str, broken: list[str], tmp_path: Path
) -> None:
    at = {"a": "20 a", "b": "9 b", "c": "2 c", "d": "8 d"}
    support = pool(
        [example(name, f"broken {name}" if name in broken else text, 8) for name, text in at.items()]
    )
    nearest = [name for name in ("d", "b", "c", "a") if name not in broken]
    query = example("query", "8 of the query", 8)
    for _ in range(2):  # the second time the disk knows what can be kept
        by = retrieval(cache=lambda key: FeatureCache(tmp_path, key, 1 << 20))
        for shots in (1, 3, 4):
            assert chosen(query, support, shots, selector, by=by) == [*nearest, *broken][:shots]


def test_a_query_that_cannot_be_read_is_refused_where_images_are_compared() -> None:
    def refusal(selector: str, image: str, shots: int = 2) -> str | None:
        wanted = Wanted("task", "test", 0, 0, shots, example("query", image), LINE)
        return retrieval().selectors()[selector].refusal(wanted)

    assert refusal("rices_image", "broken") == refusal("rices_both", "broken") == "the image is broken"
    assert refusal("rices_text", "broken") is refusal("rices_image", "3 x") is None
    assert refusal("rices_image", "broken", shots=0) is None
    assert chosen(example("query", "broken"), LINE, 2) == ["id 00", "id 01"]


def test_without_encoders_the_selector_says_what_it_needs() -> None:
    wanted = Wanted("task", "test", 0, 0, 1, example("query", 3), LINE)
    with pytest.raises(FlamingoError, match="rices_image needs an encoder"):
        select(wanted, "rices_image", "own")


def test_an_example_of_several_images_is_their_mean() -> None:
    encoded = torch.stack([at(0.0), at(1.0), at(0.5)])
    assert torch.allclose(means(encoded, [[0, 1], [2]]), torch.stack([at(0.5), at(0.5)]))
    several = Example("query", (Image(b"2 a"), Image(b"4 a")), "0", "")
    assert chosen(several, LINE, 1) == ["id 03"]


# ---- features


def many(count: int) -> Support:
    return pool([example(f"id {i:04}", f"{i % PLACES} {i}") for i in range(count)], "many")


def test_each_item_is_encoded_once_however_often_and_by_whatever_shots_it_is_asked_for() -> None:
    angles = Angles("image")
    by = Retrieval({"image": angles.load})
    for shots in (1, 2, 1):
        chosen(example("query", "4.2 of the query"), many(100), shots, by=by)
    assert len(angles.encoded) == len(set(angles.encoded)) == 101


def test_features_are_kept_on_the_disk_by_what_is_in_them(tmp_path: Path) -> None:
    def run(support: Support) -> tuple[list[str], list[str]]:
        angles = Angles("image")
        by = Retrieval({"image": angles.load}, lambda key: FeatureCache(tmp_path, key, 1 << 20))
        return chosen(example("query", "4.2 of the query"), support, 5, by=by), angles.encoded

    first, encoded = run(many(2 * BLOCK))
    assert len(encoded) == 2 * BLOCK + 1
    again, encoded = run(many(2 * BLOCK))
    assert again == first and len(encoded) == 1
    # A support that has grown: its first blocks are known.
    _, encoded = run(many(3 * BLOCK))
    assert len(encoded) == BLOCK + 1


def test_processes_that_share_the_disk_begin_at_other_blocks(tmp_path: Path) -> None:
    angles = [Angles("image") for _ in range(2)]
    for rank in range(2):
        by = Retrieval({"image": angles[rank].load}, rank=rank, number=2)
        chosen(example("query", "4.2 of the query"), many(2 * BLOCK), 1, by=by)
    assert angles[0].encoded[0].endswith(" 0") and angles[1].encoded[0].endswith(f" {BLOCK}")


# ---- encoders


def test_the_packaged_clip_knows_images_and_texts_alike() -> None:
    items = items_of("reading")
    support = items.support("test", 0).examples
    shown = {support[i].answer.strip(): support[i].images[0] for i in range(0, len(support), 7)}
    images = load_encoder("tiny", "image").encode(list(shown.values()))
    texts = load_encoder("tiny", "text").encode(list(shown))
    assert torch.allclose(images.norm(dim=1), torch.ones(len(shown)))
    found = (texts @ images.T).argmax(1)
    assert (found == torch.arange(len(shown))).float().mean() > 0.5


@pytest.mark.parametrize("kind", ["image", "text"])
def test_a_clip_of_transformers_gives_its_projected_features(
    kind: Any, tmp_path: Path, image_of: Any, language_directory: Path
) -> None:
    from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel

    small = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = CLIPConfig(
        text_config={**small, "vocab_size": 300, "max_position_embeddings": 20, "eos_token_id": 256},
        vision_config={**small, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    model = CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(
        tmp_path
    )
    AutoTokenizer.from_pretrained(language_directory).save_pretrained(tmp_path)
    items = [image_of(0), image_of(1)] if kind == "image" else ["a red thing", "two"]
    found = load_encoder(str(tmp_path), kind).encode(items)
    assert found.shape == (2, 8) and torch.allclose(found.norm(dim=1), torch.ones(2))
    alone = torch.cat([load_encoder(str(tmp_path), kind).encode([item]) for item in items])
    assert torch.allclose(found, alone, atol=1e-6) and not torch.allclose(found[0], found[1])


def test_a_sentence_encoder_gives_the_mean_over_a_texts_tokens(
    tmp_path: Path, language_directory: Path
) -> None:
    from transformers import AutoTokenizer, BertConfig, BertModel

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertModel(BertConfig(vocab_size=300, **sizes)).eval()
    model.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(language_directory)
    tokenizer.save_pretrained(tmp_path)
    texts = ["a red thing", "two"]
    states = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in texts]
    expected = torch.nn.functional.normalize(torch.stack(states), dim=1)
    assert torch.allclose(load_encoder(str(tmp_path), "text").encode(texts), expected, atol=1e-5)


def test_of_a_model_that_reads_and_writes_apart_the_encoder_reads(
    tmp_path: Path, language_directory: Path
) -> None:
    """Such as sentence-t5 and gtr."""
    from transformers import AutoTokenizer, T5Config, T5Model

    sizes = {"vocab_size": 300, "d_model": 16, "d_ff": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8}
    model = T5Model(T5Config(**sizes, decoder_start_token_id=0)).eval()
    model.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(language_directory)
    tokenizer.save_pretrained(tmp_path)
    ids = tokenizer("two", return_tensors="pt")
    mean = model.get_encoder()(**ids).last_hidden_state[0].mean(0)
    assert torch.allclose(
        load_encoder(str(tmp_path), "text").encode(["two"])[0], mean / mean.norm(), atol=1e-5
    )


def test_the_same_weights_with_another_kind_of_gelu_are_another_encoder(
    tmp_path: Path, vision_directory: Path
) -> None:
    other = shutil.copytree(vision_directory, tmp_path / "other")
    path = other / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["quick_gelu"] = True
    path.write_text(json.dumps(config))
    copied = shutil.copytree(vision_directory, tmp_path / "copied")
    first, same, another = (load_encoder(str(d), "image").key for d in (vision_directory, copied, other))
    assert first == same != another


def test_a_models_own_encoder_is_pooled(model: Any, processor: Any, image_of: Any) -> None:
    encoder = own_encoder(model, processor, "key")
    pixels = torch.stack([processor.image_transform(image_of(0))])
    mean = model.patch_features(pixels).mean(1)
    assert torch.allclose(encoder.encode([image_of(0)]), mean / mean.norm())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B-33:openai", "did you mean"),
        ("ViT-B-32:", "names no weights; choose a tag"),
        ("./nowhere", "no directory"),
        ("empty", "cannot load '.*empty' to compare examples by: .*; expected 'tiny'"),
    ],
)
def test_an_encoder_that_is_none_is_one_line(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FlamingoError, match=message) as caught:
        load_encoder(str(tmp_path / name) if name == "empty" else name, "text")
    assert "\n" not in str(caught.value)


# ---- evaluations


def asked(**changes: Any) -> EvaluationConfig:
    values: dict[str, Any] = {
        "queries": 6, "shots": [0, 3], "seeds": [0, 1], "control_shots": [3], "splits": ["test"],
        "styles": ["direct"], "conditions": ["standard", "shuffled_labels"], "max_new_tokens": 3,
        "resamples": 10, "selector": "rices_image", "image_encoder": "tiny",
    }  # fmt: skip
    return EvaluationConfig(**{**values, **changes})


def tiny_selectors(rank: int = 0, number: int = 1) -> Any:
    encoders = {"image": lambda: load_encoder("tiny", "image")}
    return {**SELECTORS, **Retrieval(encoders, rank=rank, number=number).selectors()}


def test_seeds_are_asked_only_where_they_draw_something() -> None:
    def seeds(**changes: Any) -> list[int]:
        values = {"selector": "rices_image", "condition": "standard", "shots": 3} | changes
        setting = Setting("operator_induction", "test", "direct", **values)
        return seeds_of(setting, asked())

    assert seeds() == seeds(shots=0, zero_shot="text_only") == [0]
    assert seeds(order="random") == seeds(condition="shuffled_labels") == seeds(selector="random") == [0, 1]


def test_an_encoder_that_is_not_used_is_no_part_of_what_an_evaluation_is() -> None:
    def identity(**changes: Any) -> Any:
        return identity_of([], asked(**changes))["eval"]

    assert identity(text_encoder="elsewhere") == identity()
    assert identity(image_encoder="elsewhere") != identity()
    assert identity(selector="random", image_encoder="elsewhere") == identity(selector="random")


def test_other_weights_in_an_encoders_directory_make_another_evaluation(tmp_path: Path) -> None:
    def identity(**changes: Any) -> Any:
        return identity_of([], asked(image_encoder=str(tmp_path), text_encoder=str(tmp_path), **changes))

    (tmp_path / "README.md").write_text("before")
    (tmp_path / "model.safetensors").write_bytes(b"first")
    first = identity(), identity(selector="random")
    assert set(first[0]["encoders"]) == {"image"} and "encoders" not in first[1]
    assert set(identity(selector="rices_both")["encoders"]) == {"image", "text"}
    (tmp_path / "README.md").write_text("after")
    assert (identity(), identity(selector="random")) == first
    (tmp_path / "model.safetensors").write_bytes(b"other")
    assert identity() != first[0] and identity(selector="random") == first[1]
    assert "encoders" not in identity_of([], asked())
    by_file = identity_of([], asked(image_encoder=f"ViT-B-32:{tmp_path / 'model.safetensors'}"))
    assert by_file["encoders"]["image"] == hashlib.sha256(b"other").hexdigest()


def test_a_report_draws_a_prompt_again_without_the_encoder(solve: Generate, tmp_path: Path) -> None:
    evaluate(solve, asked(), tmp_path, selectors=tiny_selectors())
    samples = load_samples(tmp_path)
    assert {sample["shots"] for sample in samples} == {0, 3}
    assert all(redrawn(sample, None) is not None for sample in samples)


@pytest.mark.parametrize("condition", ["standard", "no_query_image"])
def test_a_query_whose_image_cannot_be_read_is_a_counted_failure(
    condition: str, solve: Generate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = items_of("operator_induction", {})
    broken = replace(items.query("test", 2), images=(Image(b"no image"),))
    mended = replace(items, query=lambda split, number: broken if number == 2 else items.query(split, number))
    monkeypatch.setattr(grid, "items_of", lambda task, files: mended)
    config = asked(conditions=[condition], shots=[3])
    evaluate(solve, config, tmp_path, selectors=tiny_selectors())
    samples = {sample["query_id"]: sample["status"] for sample in load_samples(tmp_path)}
    assert samples.pop(2) == "failed" and "failed" not in samples.values() and len(samples) == 5


def test_an_interrupted_evaluation_goes_on_to_the_same_bytes(solve: Generate, tmp_path: Path) -> None:
    def run(name: str, generate: Generate) -> bytes:
        chosen = asked(batch_size=1)
        subjects = [Subject("rule", lambda: (generate, None), "0" * 64)]
        evaluate_all(subjects, chosen, tmp_path / name, resume=True, selectors=tiny_selectors())
        return (tmp_path / name / "samples.jsonl").read_bytes()

    calls = 0

    def interrupted(documents: Any, max_new_tokens: int) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return solve(documents, max_new_tokens)

    with pytest.raises(KeyboardInterrupt):
        run("interrupted", interrupted)
    assert run("interrupted", solve) == run("whole", solve)


def subject(checkpoint: Path) -> Subject:
    def answering() -> Any:
        answers = ModelAnswers(*load(checkpoint), batch_size=4)
        return answers.generate, answers.rank

    return Subject("flamingo", answering, "0" * 64)


def evaluate_on_ranks(checkpoint: Path, output: Path) -> None:
    config = TrainerConfig(accelerator="cpu")
    ranks = started_ranks(config)
    assert ranks is not None
    join(ranks, config)
    selectors = tiny_selectors(ranks.rank, ranks.number)
    evaluate_all([subject(checkpoint)], asked(), output, ranks=ranks, resume=True, selectors=selectors)


def test_two_processes_write_the_bytes_of_one(checkpoint: Path, tmp_path: Path) -> None:
    evaluate_all([subject(checkpoint)], asked(), tmp_path / "one", selectors=tiny_selectors())
    ranks_helper.run(2, evaluate_on_ranks, checkpoint, tmp_path / "two")
    one, two = ((tmp_path / name / "samples.jsonl").read_bytes() for name in ("one", "two"))
    assert one == two
