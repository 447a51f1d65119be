"""LLaVA-1.5's experiments: each composes, builds on the meta device under its policy, and is what was published. The tiny
one's model is what its experiment says."""

import random
from pathlib import Path

import pytest

import flamingo_lite as fl
from flamingo_lite.config import Config, load_config
from flamingo_lite.data.synthetic.conversations import about_scene, conversation, same_question
from flamingo_lite.data.synthetic.questions import Question, draw_scene_with, draw_subject
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.policy import apply_policy
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.training.optim import build_optimizer
from flamingo_lite.training.plan import meta_model, parts_of

Built = tuple[str, Config, VisionLanguageModel]
STAGES = ("align", "instruct", "lora")
EXPERIMENTS = Path(__file__).parents[1] / "experiments"


@pytest.fixture(scope="module", params=STAGES)
def built(request: pytest.FixtureRequest) -> Built:
    config = load_config([f"experiment=llava_1_5_7b_{request.param}", "data.directory=/data/shards"])
    model = meta_model(config.model)
    apply_policy(model, config.stage.policy)
    return request.param, config, model


def test_it_has_seven_billion_parameters(built: Built) -> None:
    total = sum(p.parameters for name, p in parts_of(built[2]).items() if name != "adapters")
    assert total == pytest.approx(7.06e9, rel=0.01)


def test_what_trains_is_what_was_published(built: Built) -> None:
    stage, _, model = built
    parts = parts_of(model)
    # The layers' seven maps of rank 128, and the projector of two maps with biases.
    projector = 1024 * 4096 + 4096 + 4096 * 4096 + 4096
    adapters = 32 * 128 * (4 * (4096 + 4096) + 3 * (4096 + 11008))
    language = parts["language model"].parameters
    assert {name: part.trainable for name, part in parts.items() if part.trainable} == {
        "align": {"connector": projector},
        "instruct": {
            "connector": projector,
            "language model": language,
            "new rows": parts["new rows"].parameters,
        },
        "lora": {"connector": projector, "adapters": adapters},
    }[stage]


def test_rates_are_those_that_were_published_and_nothing_decays(built: Built) -> None:
    stage, config, model = built
    optimizer, schedule = build_optimizer(
        model, config.stage.optimizer, steps=1000, policy=config.stage.policy
    )
    names = {parameter: name for name, parameter in model.named_parameters()}
    rates: dict[str, set[float]] = {}
    for group in optimizer.param_groups:
        assert group["weight_decay"] == 0.0 and (group["betas"], group["eps"]) == ((0.9, 0.999), 1e-8)
        for parameter in group["params"]:
            part = names[parameter].split(".")[0]
            rates.setdefault(part, set()).add(group["initial_lr"])
    assert (
        rates
        == {
            "align": {"connector": {1e-3}},
            "instruct": {"connector": {2e-5}, "language": {2e-5}},
            "lora": {"connector": {2e-5}, "language": {2e-4}},
        }[stage]
    )
    (factor, *_) = schedule.lr_lambdas  # type: ignore[attr-defined]
    # 3% of warm-up, then a cosine down to nothing.
    assert [factor(step) for step in (0, 29, 30, 999)] == pytest.approx([1 / 30, 1.0, 1.0, 0.0])
    assert factor(30 + 485) == pytest.approx(0.5, abs=0.01)


def test_batches_lengths_and_templates_are_those_that_were_published(built: Built) -> None:
    stage, config, _ = built
    found = config.stage
    assert (found.epochs, found.batch_size) == (1, 256 if stage == "align" else 128)
    assert found.max_length == 2048
    assert found.template["conversation"] == ("plain" if stage == "align" else "v1")
    padded = {"resize_mode": "pad", "shortest_edge": None}
    assert found.image_transform == ({} if stage == "align" else padded)
    assert config.trainer.precision == "bf16-mixed" and config.trainer.checkpoint_activations


def test_the_second_stage_goes_on_from_the_first() -> None:
    first = load_config(["experiment=llava_1_5_7b_align"])
    for stage in STAGES[1:]:
        assert load_config([f"experiment=llava_1_5_7b_{stage}"]).stage.start == f"{first.output}/flamingo"


@pytest.mark.parametrize("system", ["llava", "flamingo"])
def test_the_tiny_stages_go_the_same_way(system: str) -> None:
    first, second = (load_config([f"experiment={system}_tiny_{stage}"]) for stage in ("align", "instruct"))
    assert second.stage.start == f"{first.output}/flamingo"
    assert first.model == second.model == load_config([f"model={system}_tiny"]).model


def test_both_tiny_systems_are_tuned_on_the_same_data_by_the_same_steps() -> None:
    for stage in ("align", "instruct"):
        one, other = (load_config([f"experiment={system}_tiny_{stage}"]) for system in ("llava", "flamingo"))
        assert one.data == other.data
        one.stage.start = other.stage.start = None
        # Rows hold as many documents, so that an update is made from as many.
        one.stage.row_length = other.stage.row_length = None
        assert one.stage == other.stage


@pytest.fixture(scope="module")
def kept() -> tuple[VisionLanguageModel, VisionLanguageProcessor]:
    return fl.load(EXPERIMENTS / "instruct" / "contrasts" / "model")


def test_the_tiny_llava_that_is_kept_describes_scenes_that_no_training_showed(
    kept: tuple[VisionLanguageModel, VisionLanguageProcessor],
) -> None:
    generator = random.Random(7)
    scenes = [draw_scene_with(generator, draw_subject(generator), held_out=True) for _ in range(20)]
    turns = [about_scene(Question("caption"), scene, 0) for scene in scenes]
    documents = [
        conversation([scene], [turn], [0], generator) for scene, turn in zip(scenes, turns, strict=True)
    ]
    said = fl.generate(*kept, [document[:-1] for document in documents], max_new_tokens=32)
    right = [words.strip() == turn.answer for words, turn in zip(said, turns, strict=True)]
    assert sum(right) >= 17, list(zip(said, turns, strict=True))


def test_the_tiny_llava_that_is_kept_answers_of_the_image_that_is_named(
    kept: tuple[VisionLanguageModel, VisionLanguageProcessor],
) -> None:
    generator = random.Random(7)
    documents, answers = [], []
    while len(documents) < 40:
        subject = draw_subject(generator)
        pair = [draw_scene_with(generator, subject, held_out=True) for _ in range(2)]
        # The same question, put to both: who answers of either, or of both together, has half of them right.
        for turn in same_question(pair, generator):
            documents.append(conversation(pair, [turn], [0, 0], generator)[:-1])
            answers.append(turn.answer)
    said = fl.generate(*kept, documents, max_new_tokens=8)
    right = [words.strip() == answer for words, answer in zip(said, answers, strict=True)]
    assert sum(right) >= 30, list(zip(said, answers, strict=True))
