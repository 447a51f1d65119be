"""Episodes: demonstrations are others of the query's task, in an order that is a pure function, with the loss asked for."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from flamingo_lite import cli
from flamingo_lite.data.episodes import EpisodeConfig, Left, draw, episode, episodes
from flamingo_lite.data.shards import Shards, read_samples, write_shards
from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import FlamingoError
from flamingo_lite.text.conversations import CONVERSATIONS
from flamingo_lite.text.template import Template
from flamingo_lite.text.tokenizer import encode
from tests.text.tokenizer_kinds import tokenizer_of

ImageOf = Callable[[int], Image]


def asked(number: int, image: Image, task: str | None = None) -> Document:
    question, answer = (
        Text(f"q{number}", False, "user"),
        Text(f"a{number}", True, "assistant", ends_chunk=True),
    )
    return Document([image, question, answer], {} if task is None else {"task": task})


@pytest.fixture
def shards(tmp_path: Path, image_of: ImageOf) -> Path:
    """Two tasks of five documents and one of a single document; documents 0 and 2 show the same image."""
    documents = [asked(i, image_of(0 if i == 2 else i), "even" if i % 2 == 0 else "odd") for i in range(10)]
    documents.append(asked(10, image_of(10), "lonely"))
    write_shards(((f"d{i}", document) for i, document in enumerate(documents)), tmp_path / "shards", 4)
    return tmp_path / "shards"


def made(shards: Path, **options: object) -> tuple[dict[str, Document], list[Left]]:
    left: list[Left] = []
    config = EpisodeConfig(**{"shots": 2, "by": "task", **options})  # pyrefly: ignore[bad-argument-type]
    return dict(episodes(Shards(shards), config, left)), left


def test_demonstrations_are_others_of_the_task_that_show_other_images(shards: Path) -> None:
    found, left = made(shards, shots=3)
    for key, document in found.items():
        shown = document.meta["demonstrations"]
        assert len({*shown, key}) == 4
        assert len({int(name[1:]) % 2 for name in (*shown, key)}) == 1
        assert (
            len({image.id for image in document.images}) >= 3
            and document.images[-1] not in document.images[:-1]
        )
        texts = [text.text for text in document.texts]
        assert texts == [side + name[1:] for name in (*shown, key) for side in "qa"]
    assert [(one.key, one.reason) for one in left] == [("d10", "episode")]


def test_an_episode_depends_on_nothing_but_its_number(shards: Path) -> None:
    assert made(shards) == made(shards)
    first = {key: document.meta["demonstrations"] for key, document in made(shards)[0].items()}
    second = {key: document.meta["demonstrations"] for key, document in made(shards, seed=1)[0].items()}
    assert first.keys() == second.keys() and first != second
    members = list(range(1000))
    images = {number: frozenset([str(number)]) for number in members}
    alone = draw(17, members, images, EpisodeConfig(2))
    assert alone == draw(17, members, images, EpisodeConfig(2)) != draw(18, members, images, EpisodeConfig(2))


def test_without_a_field_all_documents_are_of_one_task(shards: Path) -> None:
    found, left = made(shards, by="")
    assert len(found) == 11 and left == []


def test_documents_without_the_field_are_left_out_and_without_any_it_is_refused(shards: Path) -> None:
    with pytest.raises(FlamingoError, match="no document has a task .*'topic' is missing in meta"):
        made(shards, by="topic")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tokenizer_of("byte_level_bpe")


@pytest.mark.parametrize(
    ("loss", "expected"), [("all", " a1<|endofchunk|> a2<|endofchunk|>"), ("query", " a2<|endofchunk|>")]
)
def test_the_loss_is_on_all_answers_or_on_the_querys(
    image_of: ImageOf, tokenizer: PreTrainedTokenizerFast, loss: str, expected: str
) -> None:
    document = episode(asked(2, image_of(2)), [("d1", asked(1, image_of(1)))], loss)
    encoded = encode(document, tokenizer, Template(conversation=CONVERSATIONS["otter"]), True)
    written = "<s><image>User: q1 GPT:<answer> a1<|endofchunk|><image>User: q2 GPT:<answer> a2<|endofchunk|>"
    assert tokenizer.decode(encoded.input_ids) == written
    assert tokenizer.decode([label for label in encoded.labels if label != -100]) == expected


def test_only_the_querys_message_of_the_system_is_kept(image_of: ImageOf) -> None:
    spoken = [Document([Text(f"s{i}", False, "system"), *asked(i, image_of(i))]) for i in (1, 2)]
    texts = episode(spoken[1], [("d1", spoken[0])], "all").texts
    assert [text.text for text in texts] == ["s2", "q1", "a1", "q2", "a2"]


def test_a_demonstration_without_roles_is_a_chunk(image_of: ImageOf) -> None:
    caption = Document([image_of(1), "A cat."])
    document = episode(Document([image_of(2), "A dog."]), [("d1", caption)], "query")
    assert document == Document(
        [image_of(1), Text("A cat.", False, ends_chunk=True), image_of(2), Text("A dog.")],
        {"demonstrations": ["d1"]},
    )


def test_the_command_writes_shards_and_says_what_it_left_out(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data", "episodes", str(shards), "--to", str(tmp_path / "out"), "--shots", "2", "--by", "task"]
    assert cli.main([*words, "--loss", "query"]) == 0
    shown = capsys.readouterr().out
    assert "10 episodes of 2 demonstrations" in shown and "1 documents were left out (episode 1)" in shown
    assert dict(read_samples(tmp_path / "out")) == made(shards, loss="query")[0]
    [reject] = map(json.loads, (tmp_path / "out" / "rejects.jsonl").read_text().splitlines())
    assert reject["key"] == "d10"


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["--shots", "0"], "--shots is 0"), (["--loss", "querry"], "did you mean 'query'")],
)
def test_a_wrong_option_is_one_line(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    assert cli.main(["data", "episodes", str(shards), "--to", str(tmp_path / "out"), *words]) == 2
    shown = capsys.readouterr().err
    assert expected in shown and shown.count("\n") == 1
