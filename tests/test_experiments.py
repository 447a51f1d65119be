"""The experiments for clusters: each composes, builds on the meta device under its policy, and is what was published."""

import pytest

from flamingo_lite.config import Config, load_config, preset_groups
from flamingo_lite.data.mixing import apportion
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.policy import apply_policy
from flamingo_lite.training.optim import build_optimizer
from flamingo_lite.training.plan import meta_model, parts_of

BILLIONS = {"openflamingo_3b": 3, "openflamingo_9b": 9, "idefics_9b": 9}
"""The published sizes, by what the models are called."""

Built = tuple[str, Config, VisionLanguageModel]


@pytest.fixture(scope="module", params=sorted(BILLIONS))
def built(request: pytest.FixtureRequest) -> Built:
    config = load_config([f"experiment={request.param}", "data.directory=/data/web"])
    model = meta_model(config.model)
    apply_policy(model, config.stage.policy or config.model.policy)
    return request.param, config, model


def test_every_experiment_is_one_that_is_tested_here_or_the_tiny_one() -> None:
    assert {"quickstart", *BILLIONS} <= set(preset_groups()["experiment"])


def test_an_experiment_has_the_size_that_its_name_says(built: Built) -> None:
    name, _, model = built
    total = sum(part.parameters for part in parts_of(model).values())
    assert total == pytest.approx(BILLIONS[name] * 1e9, rel=0.16)


def test_an_experiment_trains_the_join_alone(built: Built) -> None:
    _, _, model = built
    for name, part in parts_of(model).items():
        trains = name in ("connector", "cross-attention", "new rows")
        assert part.trainable == (part.parameters if trains else 0), name


def test_an_experiments_optimizer_has_the_published_rates_and_decays(built: Built) -> None:
    name, config, model = built
    optimizer, _ = build_optimizer(model, config.stage.optimizer, config.stage.steps, config.stage.policy)
    names = {parameter: name for name, parameter in model.named_parameters()}
    decays: dict[str, set[float]] = {}
    for group in optimizer.param_groups:
        assert group["initial_lr"] == {"idefics_9b": 1e-5}.get(name, 1e-4)
        for parameter in group["params"]:
            if parameter.ndim >= 2 and not names[parameter].endswith(("latents", "new_rows")):
                part = "blocks" if ".cross_attention." in names[parameter] else "connector"
                decays.setdefault(part, set()).add(group["weight_decay"])
    assert decays == {"blocks": {0.1}, "connector": {0.1} if name == "idefics_9b" else {0.0}}


def test_openflamingo_sees_60_million_mmc4_documents_and_twice_as_many_pairs() -> None:
    config = load_config(["experiment=openflamingo_3b"])
    sources = config.data.sources
    weights = {name: source.weight or 0 for name, source in sources.items()}
    documents = config.stage.steps * config.stage.batch_size
    seen = {name: documents * weight / sum(weights.values()) for name, weight in weights.items()}
    assert seen == pytest.approx({"mmc4": 60e6, "laion": 120e6}, rel=0.001)
    assert sources["laion"].loss_weight == 0.2 * sources["mmc4"].loss_weight


def test_idefics_mixture_comes_to_the_published_shares_of_tokens() -> None:
    config = load_config(["experiment=idefics_9b"])
    # Of its model card: tokens and documents of each source; Wikipedia's documents are an estimate.
    of_a_document = {
        "obelics": 114.9e9 / 141e6, "laion": 29.9e9 / 1.12e9, "wikipedia": 3.192e9 / 6.6e6, "pmd": 1.6e9 / 70e6,
    }  # fmt: skip
    counts = apportion({name: source.weight for name, source in config.data.sources.items()})
    assert counts is not None
    tokens = {
        name: count * of_a_document[name] for name, count in zip(config.data.sources, counts, strict=True)
    }
    shares = {name: 100 * count / sum(tokens.values()) for name, count in tokens.items()}
    assert shares == pytest.approx(
        {"obelics": 73.85, "laion": 17.18, "wikipedia": 6.15, "pmd": 2.82}, abs=0.2
    )
    assert config.stage.batch_size * (config.stage.row_length or 0) == pytest.approx(1.31e6, rel=0.001)


def test_the_output_of_an_experiment_bears_its_name() -> None:
    assert load_config(["experiment=openflamingo_9b"]).output == "outputs/openflamingo_9b"


def test_a_preset_that_an_experiment_chooses_gives_way_to_the_command_line() -> None:
    config = load_config(["experiment=openflamingo_9b", "trainer=default", "stage.steps=5"])
    assert (config.trainer.strategy, config.stage.steps) == ("auto", 5)
