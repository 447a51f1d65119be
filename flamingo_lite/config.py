"""The configuration of everything: the components' own dataclasses, put together and read through hydra.

YAML in `conf/` only chooses; an unknown key, preset or value is one line with the nearest right name.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.grid import EvaluationConfig
from flamingo_lite.names import check_choice, nearest, unknown
from flamingo_lite.training.comparison import ComparisonConfig
from flamingo_lite.training.plan import PlanConfig
from flamingo_lite.training.settings import TrainingConfig

SCHEMA = "schema"
SAVED = "saved"


@dataclass
class Config(TrainingConfig):
    """What training reads, the evaluation, the plan and the comparison. `checkpoint`: the model to evaluate; `models`:
    several, by name, each a directory or what `evaluation.others.choice.ModelChoice` takes."""

    eval: EvaluationConfig = field(default_factory=EvaluationConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    compare: ComparisonConfig = field(default_factory=ComparisonConfig)
    checkpoint: str = ""
    models: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.models and self.checkpoint:
            raise FlamingoError(
                f"checkpoint is {self.checkpoint} and models names {', '.join(self.models)}; give one of the two"
            )


def conf_directory() -> Path:
    """The presets: inside the package when it was installed from a wheel, beside it in a checkout."""
    package = Path(__file__).parent
    return next(d for d in (package / "conf", package.parent / "conf") if d.is_dir())


def preset_groups() -> dict[str, list[str]]:
    """{"model": ["flamingo_tiny"], ...}: what may stand in `group=preset`."""
    folders = (folder for folder in sorted(conf_directory().iterdir()) if folder.is_dir())
    found = {folder.name: sorted(path.stem for path in folder.glob("*.yaml")) for folder in folders}
    return {name: presets for name, presets in found.items() if presets}


def load_config(overrides: Sequence[str] = ()) -> Config:
    """The composed, typed and checked configuration. Errors: `FlamingoError`, one line."""
    return as_config(compose(overrides))


def compose(overrides: Sequence[str] = (), file: str | None = None) -> DictConfig:
    """What the presets and the overrides come to, before the components have checked their values.

    `file`: a config.yaml that a run has saved, in place of the presets.
    """
    parsed = parse(overrides)
    if swept := next((o for o in parsed if o.is_sweep_override()), None):
        raise FlamingoError(
            f"'{swept.input_line}' gives several values; add -m to run each, or write a list as [1,2]"
        )
    if file is not None:
        _store(file, parsed)
    with started_hydra(file) as (_, name), one_line_errors():
        composed = hydra.compose(name, overrides=[normalized(override) for override in parsed])
        OmegaConf.resolve(composed)
        return composed


def sweep(overrides: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """For each combination of the swept values: its name ("seed=1,stage.steps=20") and its overrides."""
    parsed = parse(overrides)
    swept = [o for o in parsed if o.is_sweep_override()]
    fixed = [o.input_line or "" for o in parsed if not o.is_sweep_override()]
    choices = [[f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()] for o in swept]
    for combination in itertools.product(*choices):
        yield ",".join(combination), [*fixed, *combination]


def as_config(composed: DictConfig) -> Config:
    """The dataclasses, each of which checks its own values."""
    try:
        config = OmegaConf.to_object(composed)
    except (OmegaConfBaseException, ValueError) as error:
        raise FlamingoError(f"configuration: {_first_line(error)}") from error
    assert isinstance(config, Config)
    return config


def as_yaml(composed: DictConfig) -> str:
    return OmegaConf.to_yaml(composed, resolve=True)


def parse(overrides: Sequence[str]) -> list[Override]:
    """The overrides, each of which names something that exists. Errors: `FlamingoError`."""
    parsed = []
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException as error:
            raise FlamingoError(
                f"cannot read the override '{text}' ({_first_line(error)}); expected key=value"
            ) from error
        _check_name(override)
        parsed.append(override)
    return parsed


def _store(file: str, overrides: Iterable[Override]) -> None:
    """Makes a saved configuration one that hydra can start from. Errors: `FlamingoError`."""
    groups = preset_groups()
    if chosen := next((o for o in overrides if o.key_or_group in groups), None):
        raise FlamingoError(
            f"'{chosen.input_line}' chooses a preset, but --config {file} has all settings already; change single ones "
            f"({chosen.key_or_group}.<name>=...), or leave --config out"
        )
    try:
        saved = OmegaConf.load(file)
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise FlamingoError(
            f"--config {file} cannot be read ({_first_line(error)}); expected the config.yaml of a run"
        ) from error
    if not isinstance(saved, DictConfig):
        raise FlamingoError(f"--config {file} holds no settings; expected the config.yaml of a run")
    keys, free = _known_keys()
    for key in _dotted(saved):
        if key not in keys and not any(key.startswith(f"{prefix}.") for prefix in free):
            raise unknown(f"setting in {file}:", key, keys)
    node = OmegaConf.create({"defaults": [SCHEMA, "_self_"], **saved})
    ConfigStore.instance().store(name=SAVED, node=node)


def _dotted(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for name in node:
        child = node._get_node(name)
        yield f"{prefix}{name}"
        if isinstance(child, DictConfig) and not child._is_none():
            yield from _dotted(child, f"{prefix}{name}.")


@contextmanager
def started_hydra(file: str | None = None) -> Iterator[tuple[Hydra, str]]:
    """Hydra on the presets, and what it starts from: config.yaml, or `file` that `compose` has read before."""
    ConfigStore.instance().store(name=SCHEMA, node=_schema())
    with hydra.initialize_config_dir(str(conf_directory().absolute()), version_base="1.3"):
        started = GlobalHydra.instance().hydra
        assert started is not None
        yield started, SAVED if file else "config"


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Hydra's and OmegaConf's errors as one `FlamingoError`."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise FlamingoError(f"configuration: {_explained(error)}") from error


def launcher_settings(launcher: str) -> list[str]:
    """The names that `hydra.launcher.<name>` has under hydra/launcher=`launcher`; call it within `started_hydra`."""
    with one_line_errors():
        composed = hydra.compose("config", [f"hydra/launcher={launcher}"], return_hydra_config=True)
    return [str(name) for name in composed.hydra.launcher]


def _schema() -> DictConfig:
    schema = OmegaConf.structured(Config)
    _thaw(schema)
    return schema


def _thaw(node: DictConfig) -> None:
    # OmegaConf makes a frozen dataclass read-only, also while the configuration is still being composed.
    OmegaConf.set_readonly(node, None)
    for key in node:
        child = node._get_node(key)
        if isinstance(child, DictConfig):
            _thaw(child)


def _check_name(override: Override) -> None:
    key, groups = override.key_or_group, preset_groups()
    if key in groups:
        if key == "experiment" and override.value() is None:
            return
        check_choice(f"preset of {key}=", str(override.value()), groups[key])
        return
    keys, free = _known_keys()
    if key in keys or any(key.startswith(f"{prefix}.") for prefix in free):
        return
    inside = key
    while inside and inside not in keys:
        inside = inside.rpartition(".")[0]
    siblings = [known for known in keys if known.rpartition(".")[0] == inside]
    raise unknown("option", key, siblings if inside and nearest(key, siblings) else keys)


@functools.cache
def _known_keys() -> tuple[list[str], list[str]]:
    """All dotted keys, and those of dictionaries whose own keys are free."""
    keys: list[str] = []
    free: list[str] = []

    def walk(kind: type[Any], prefix: str) -> None:
        schema = OmegaConf.structured(kind)
        for item in fields(kind):
            key = f"{prefix}{item.name}"
            keys.append(key)
            inner = OmegaConf.get_type(schema._get_node(item.name))
            if is_dataclass(inner) and isinstance(inner, type):
                walk(inner, f"{key}.")
            elif inner is dict:
                free.append(key)

    walk(Config, "")
    return keys, free


def normalized(override: Override) -> str:
    """Keys of free dictionaries may be named without hydra's "+"."""
    text = override.input_line or ""
    _, free = _known_keys()
    owner = next((f for f in free if f"{override.key_or_group}.".startswith(f"{f}.")), None)
    if owner is None or text[0] in "+~":
        return text
    key, _, value = text.partition("=")
    inside = key.removeprefix(f"{owner}.").split(".") if key != owner else []
    if len(inside) < 2 or not _has_typed_entries(owner):
        return f"++{text}"
    # OmegaConf makes such an entry from a dictionary, and from nothing else.
    for name in reversed(inside):
        value = f"{{{name}:{value}}}"
    return f"++{owner}={value}"


@functools.cache
def _has_typed_entries(key: str) -> bool:
    """Are the entries of a free dictionary dataclasses (data.sources)?"""
    return is_dataclass(OmegaConf.select(_schema(), key)._metadata.element_type)


def _explained(error: Exception) -> str:
    # Hydra's own message names the override; what was wrong with it stands in its cause.
    cause = error.__cause__
    lines = [_first_line(error), _first_line(cause) if cause is not None else ""]
    return ": ".join(dict.fromkeys(line for line in lines if line))


def _first_line(error: BaseException) -> str:
    """A message of hydra or OmegaConf without the lines that explain its type system."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kept = itertools.takewhile(
        lambda line: not line.startswith(("full_key:", "See https", "Available")), lines
    )
    return " ".join(kept) or type(error).__name__
