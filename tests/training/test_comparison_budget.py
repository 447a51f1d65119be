"""One budget for unlike systems: the same documents in the same steps, or the same arithmetic."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flamingo_lite.data.encoding import use_changes
from flamingo_lite.data.make import DataConfig, draw_documents
from flamingo_lite.data.shards import write_shards
from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.build import build_processor, model_config_from
from flamingo_lite.processing import VisionLanguageProcessor
from flamingo_lite.training.comparison import ComparisonConfig, SystemPlan, folder_of, plan_systems
from flamingo_lite.training.datamodule import ShardDataModule, open_sources
from flamingo_lite.training.settings import StageConfig, TrainingConfig

SAMPLES = 48


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("compared") / "shards"
    data = DataConfig(families={"operator_induction": 1.0}, samples=SAMPLES, workers=1)
    write_shards(draw_documents(data), directory, samples_per_shard=20)
    return directory


@pytest.fixture(scope="module")
def systems(
    shards: Path, model_config: dict[str, Any], prefix_config: dict[str, Any]
) -> dict[str, TrainingConfig]:
    stage = StageConfig(batch_size=4, pack=True, pack_window=24, samples=0)
    return {
        name: TrainingConfig(
            model=model_config_from(config), data=DataConfig(directory=str(shards)), stage=stage
        )
        for name, config in {"cross": model_config, "prefix": prefix_config}.items()
    }


@pytest.fixture(scope="module")
def plans(systems: dict[str, TrainingConfig]) -> dict[str, SystemPlan]:
    return plan_systems(systems, ComparisonConfig(samples=SAMPLES, documents=8))


def steps_of(plan: SystemPlan, processor: VisionLanguageProcessor | None = None) -> tuple[int, list[int]]:
    """The steps that training would take, and the documents of each window, sorted."""
    config = plan.config
    processor = processor or build_processor(config.model)
    data = ShardDataModule(
        open_sources(config.data), config.data, config.stage, processor, config.seed, max_length=256
    )
    numbers = [slot.number for rows, _ in data.plan.batches() for row in rows for slot in row]
    return data.steps, numbers


def test_every_system_sees_each_document_once_in_about_as_many_steps(plans: dict[str, SystemPlan]) -> None:
    seen = {name: steps_of(plan) for name, plan in plans.items()}
    for steps, numbers in seen.values():
        assert sorted(numbers) == list(range(SAMPLES))
        assert steps == pytest.approx(SAMPLES / 8, abs=2)
    assert plans["prefix"].tokens > plans["cross"].tokens


def test_unpacked_systems_have_the_same_documents_in_each_step(systems: dict[str, TrainingConfig]) -> None:
    plain = {name: replace(c, stage=replace(c.stage, pack=False)) for name, c in systems.items()}
    unpacked = plan_systems(plain, ComparisonConfig(samples=SAMPLES, documents=8))
    assert steps_of(unpacked["cross"]) == steps_of(unpacked["prefix"])


def test_under_a_budget_of_arithmetic_all_take_as_much_to_a_step(
    systems: dict[str, TrainingConfig], plans: dict[str, SystemPlan]
) -> None:
    budget = 40.0 * 8 * (plans["cross"].flops_by_document or 0)
    found = plan_systems(systems, ComparisonConfig(samples=SAMPLES, documents=8, flops=budget))
    for plan in found.values():
        assert plan.flops == pytest.approx(budget, rel=0.5 / plan.steps + 1e-6)
        assert plan.config.stage.epochs is None
    assert found["cross"].steps == 40


def test_documents_are_measured_as_the_stage_writes_them(
    systems: dict[str, TrainingConfig], tmp_path: Path
) -> None:
    data = DataConfig(
        directory=str(tmp_path / "talks"), families={"captions": 1.0}, samples=SAMPLES, workers=1
    )
    write_shards(draw_documents(data), data.directory, samples_per_shard=20)
    stage = replace(systems["cross"].stage, template={"conversation": "v1"})
    talking = {name: replace(config, data=data, stage=stage) for name, config in systems.items()}
    found = plan_systems(talking, ComparisonConfig(samples=SAMPLES, documents=8))
    plain = {name: replace(c, stage=replace(stage, template={})) for name, c in talking.items()}
    bare = plan_systems(plain, ComparisonConfig(samples=SAMPLES, documents=8))
    for name, plan in found.items():
        # What v1 writes around turns counts, and steps are of as many documents all the same.
        assert plan.tokens > 1.2 * bare[name].tokens
        processor = build_processor(plan.config.model)
        use_changes(processor, stage.template, "stage.template")
        steps, numbers = steps_of(plan, processor)
        assert sorted(numbers) == list(range(SAMPLES)) and steps == pytest.approx(SAMPLES / 8, abs=2)


def test_unlike_numbers_of_media_tokens_are_refused(
    systems: dict[str, TrainingConfig], model_config: dict[str, Any]
) -> None:
    other = {**model_config, "connector": {**model_config["connector"], "latents": 2}}
    unlike = {**systems, "few": replace(systems["cross"], model=model_config_from(other))}
    with pytest.raises(FlamingoError, match="cross 3, prefix 3, few 2"):
        plan_systems(unlike, ComparisonConfig(samples=SAMPLES, documents=8))


def test_more_documents_than_there_are_is_refused(systems: dict[str, TrainingConfig]) -> None:
    with pytest.raises(FlamingoError, match=r"compare\.samples is 49, but .* holds 48"):
        plan_systems(systems, ComparisonConfig(samples=49))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"samples": 0}, "compare.samples is 0"),
        ({"flops": -1.0}, "compare.flops is -1.0"),
        ({"seeds": []}, "compare.seeds is []"),
        ({"seeds": [1, 1]}, "different seeds"),
        ({"jobs": -1}, "compare.jobs is -1"),
    ],
)
def test_budgets_that_cannot_be_are_one_line(fields: dict[str, Any], expected: str) -> None:
    with pytest.raises(FlamingoError) as raised:
        ComparisonConfig(**fields)
    assert expected in str(raised.value)


def test_a_run_lies_in_a_folder_of_its_system_and_seed() -> None:
    assert folder_of("outputs/x", "llava", 2) == Path("outputs/x/llava/seed_2")
