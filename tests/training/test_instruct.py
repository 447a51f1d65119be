"""Training on conversations: the stage's template is the model's afterwards, and what is too long is cut and counted."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from flamingo_lite.checkpoints.io import load
from flamingo_lite.data.lengths import Measure
from flamingo_lite.data.mixing import SourceConfig
from flamingo_lite.data.shards import write_shards
from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.build import build_processor
from flamingo_lite.text.conversations import CONVERSATIONS
from flamingo_lite.text.template import Template
from flamingo_lite.training.callbacks import read_metrics
from flamingo_lite.training.datamodule import ShardDataModule, open_sources
from flamingo_lite.training.stages import run_stage
from tests.training.conftest import Recipe

BRIEF = {"conversation": {"name": "v1", "system": ""}}


@pytest.fixture
def talks(recipe: Recipe, tmp_path: Path, image_of: Callable[[int], Image]) -> Recipe:
    """Conversations of one to three questions; of the last one none is answered."""

    def talk(number: int) -> Document:
        turns: list[Text | Image] = [image_of(number % 5)]
        for item in range(number % 3 + 1):
            turns += [Text(f"{item}?", False, "user"), Text(f"{(number + item) % 5}", True, "assistant")]
        return Document(turns[:-1] if number == 11 else turns)

    write_shards(((f"{i:04d}", talk(i)) for i in range(12)), tmp_path / "talks")
    recipe.shards = tmp_path / "talks"
    return recipe


@pytest.mark.parametrize("pack", [False, True])
def test_the_stages_template_is_the_models_and_what_is_no_use_is_counted(
    talks: Recipe, tmp_path: Path, pack: bool
) -> None:
    config = talks(tmp_path / "run", epochs=1, template=BRIEF, max_length=50, pack=pack)
    config.data.max_reject_share = 1.0
    model, processor = load(run_stage(config))
    assert processor.template.conversation == replace(CONVERSATIONS["v1"], system="")
    row = read_metrics(tmp_path / "run" / "metrics.csv")[-1]
    assert (row["documents"], row["rejects/turns"]) == (12, 1)
    # Of three questions the last one does not fit into 50 tokens.
    assert row["truncated"] == 3


def test_another_template_is_another_run(talks: Recipe, tmp_path: Path) -> None:
    run_stage(talks(tmp_path / "run", steps=1, template=BRIEF))
    with pytest.raises(FlamingoError, match=r"stage\.template\.conversation"):
        run_stage(talks(tmp_path / "run", steps=1, template={"conversation": "otter"}))


def test_a_source_may_have_a_template_of_its_own(talks: Recipe, tmp_path: Path) -> None:
    config = talks(tmp_path / "run")
    config.data.sources = {
        "plain": SourceConfig(str(talks.shards), template={"conversation": "plain"}),
        "talk": SourceConfig(str(talks.shards)),
    }
    processor = build_processor(config.model)
    data = ShardDataModule(open_sources(config.data), config.data, config.stage, processor, seed=0)
    assert [source.template.conversation for source in data.sources] == [CONVERSATIONS["plain"], None]


def test_lengths_are_measured_anew_under_another_template(talks: Recipe, tmp_path: Path) -> None:
    processor = build_processor(talks(tmp_path).model)
    templates = [
        Template(),
        *(Template(conversation=CONVERSATIONS[name]) for name in ("v1", "plain", "tokenizer")),
    ]
    keys = [Measure(processor, template, 64).key for template in templates]
    processor.tokenizer.chat_template = "{{ messages[0].content }}"
    keys.append(Measure(processor, templates[-1], 64).key)
    assert len(set(keys)) == len(keys)
