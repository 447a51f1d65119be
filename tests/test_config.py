"""The presets compose, and what is not known is answered with the nearest right name."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from flamingo_lite import config as configuration
from flamingo_lite.config import Config, as_config, compose, load_config, preset_groups, sweep
from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.build import build
from flamingo_lite.models.parts import BACKBONES
from flamingo_lite.training.beginning import as_yaml

PRESETS = [(group, preset) for group, presets in preset_groups().items() for preset in presets]


@pytest.mark.parametrize(("group", "preset"), PRESETS)
def test_every_preset_composes_to_the_typed_configuration(group: str, preset: str) -> None:
    assert isinstance(load_config([f"{group}={preset}"]), Config)


@pytest.mark.parametrize("preset", preset_groups()["model"])
def test_every_model_preset_builds(preset: str) -> None:
    if not (BACKBONES / "language").is_dir():
        pytest.fail("the packaged backbones are missing")
    config = load_config([f"model={preset}"]).model
    # What is written out in full is a published system, too large to be given numbers.
    with torch.device("meta" if config.language.config else "cpu"):
        assert build(config).fusion == config.fusion


def test_an_override_changes_its_setting_alone() -> None:
    changed, plain = load_config(["stage.steps=7"]), load_config()
    assert changed.stage.steps == 7
    changed.stage.steps = plain.stage.steps
    assert changed == plain


def test_the_shards_lie_in_the_output() -> None:
    assert load_config(["output='a folder/b'"]).data.directory == "a folder/b/shards"


def test_a_family_is_weighted_by_name() -> None:
    assert load_config(["data.families.scenes=2.5"]).data.families["scenes"] == 2.5


def test_a_frozen_dataclass_of_a_component_can_be_overridden() -> None:
    assert load_config(["model.fusion.every=2"]).model.fusion.every == 2


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("experiment=quikstart", "unknown preset of experiment= 'quikstart'; did you mean 'quickstart'?"),
        ("model=flamingo_tine", "did you mean 'flamingo_tiny'?"),
        ("stage.stepz=3", "unknown option 'stage.stepz'; did you mean 'stage.steps'?"),
        ("stage.optimizer.learning_rat=1", "did you mean 'stage.optimizer.learning_rate'?"),
        ("stge.steps=1", "unknown option 'stge.steps'; did you mean 'stage.steps'?"),
        ("+stage.foo=3", "unknown option 'stage.foo'"),
        ("wandb.mode=offlin", "unknown value of wandb.mode: 'offlin'; did you mean 'offline'?"),
        ("trainer.precision=bf16-mixd", "did you mean 'bf16-mixed'?"),
        ("model.connector.name=percever", "did you mean 'perceiver'?"),
        ("eval.splits=[tst]", "did you mean 'test'?"),
        ("data.families.scene=1", "did you mean 'scenes'?"),
        ("stage.steps=many", "stage.steps=many"),
        ("stage.steps=0", "stage.steps is 0; expected 1 or more"),
        ("model.connector.latents=0", "connector.latents is 0"),
        ("stage.steps", "expected key=value"),
        ("stage.steps={", "cannot read the override"),
        ("stage.steps=1,2", "add -m"),
        ("name=${nme}", "'nme' not found"),
    ],
)
def test_a_wrong_override_is_one_line_that_says_what_would_be_right(override: str, expected: str) -> None:
    with pytest.raises(FlamingoError) as raised:
        load_config([override])
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_preset_file_with_a_wrong_key_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for path in configuration.conf_directory().rglob("*.yaml"):
        copy = tmp_path / path.relative_to(configuration.conf_directory())
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text())
    monkeypatch.setattr(configuration, "conf_directory", lambda: tmp_path)
    preset = tmp_path / "stage" / "bridge.yaml"
    preset.write_text("stepz: 3\n")
    with pytest.raises(FlamingoError, match="Key 'stepz' not in 'StageConfig'"):
        compose()
    preset.write_text("steps: {3\n")
    with pytest.raises(FlamingoError, match="configuration: "):
        compose()


def test_a_sweep_names_each_combination() -> None:
    runs = list(sweep(["seed=0,1", "stage.steps=5,6", "name=x"]))
    assert [name for name, _ in runs] == [
        "seed=0,stage.steps=5",
        "seed=0,stage.steps=6",
        "seed=1,stage.steps=5",
        "seed=1,stage.steps=6",
    ]
    assert runs[1][1] == ["name=x", "seed=0", "stage.steps=6"]


def test_the_package_and_its_help_import_no_torch() -> None:
    code = (
        "import sys; from flamingo_lite.cli import main; code = main(['--help']);"
        "sys.exit(code or 'torch' in sys.modules or 'hydra' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "quickstart" in found.stdout


def test_a_saved_configuration_runs_again_as_it_is_or_with_changes(tmp_path: Path) -> None:
    saved = load_config(["stage.steps=7", "model=llava_tiny", "data.directory=there"])
    file = tmp_path / "config.yaml"
    file.write_text(as_yaml(saved))
    assert as_yaml(saved) == OmegaConf.to_yaml(OmegaConf.structured(saved))
    assert as_config(compose([], str(file))) == saved
    changed = as_config(compose(["stage.steps=9"], str(file)))
    assert changed.stage.steps == 9 and changed.model == saved.model


def test_a_saved_configuration_is_refused_by_what_is_wrong_with_it(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    with pytest.raises(FlamingoError, match=r"--config .* cannot be read"):
        compose([], str(file))
    file.write_text("stage: {stepz: 3}")
    with pytest.raises(FlamingoError, match=r"stage\.stepz.*stage\.steps"):
        compose([], str(file))
    file.write_text("seed: 3")
    with pytest.raises(FlamingoError, match="'model=llava_tiny' chooses a preset, but --config"):
        compose(["model=llava_tiny"], str(file))
