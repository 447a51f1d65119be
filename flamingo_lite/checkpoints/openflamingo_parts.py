"""The parts that an OpenFlamingo checkpoint was trained on: named in openflamingo.json, known for the releases."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from transformers import AddedToken, PreTrainedTokenizerBase

from flamingo_lite.checkpoints.hub import snapshot
from flamingo_lite.document import END_OF_CHUNK, IMAGE_TOKEN
from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.language import LanguageConfig, load_tokenizer
from flamingo_lite.models.tower import VisionConfig
from flamingo_lite.names import check_choice

CHECKPOINT = "checkpoint.pt"
PARTS = ("openflamingo.json", "openflamingo.yaml", "openflamingo.yml")
PAD = "<PAD>"


@dataclass(frozen=True)
class Parts:
    """What OpenFlamingo's `create_model_and_transforms` takes, by its names; directories are relative to the file.

    `final_norm`: the checkpoint was trained under open_clip >= 2.23, which applies `ln_post` to the patch tokens;
    the published ones were not.
    """

    clip_vision_encoder_path: str
    lang_encoder_path: str
    clip_vision_encoder_pretrained: str | bool | None = None
    tokenizer_path: str | None = None
    cross_attn_every_n_layers: int = 1
    final_norm: bool = False

    def vision(self, directory: Path) -> VisionConfig:
        return VisionConfig(
            name=_in(directory, self.clip_vision_encoder_path),
            pretrained=self.clip_vision_encoder_pretrained,
            final_norm=self.final_norm,
        )

    def language(self, directory: Path) -> LanguageConfig:
        return LanguageConfig(name=_in(directory, self.lang_encoder_path))

    def tokenizer(self, directory: Path) -> tuple[PreTrainedTokenizerBase, int]:
        """The tokenizer with OpenFlamingo's tokens, and the first id that is new."""
        name = _in(directory, self.tokenizer_path or self.lang_encoder_path)
        tokenizer = load_tokenizer(LanguageConfig(name=name))
        first = len(tokenizer)
        added = [AddedToken(token, special=True, normalized=False) for token in (END_OF_CHUNK, IMAGE_TOKEN)]
        tokenizer.add_tokens(added, special_tokens=True)
        if tokenizer.pad_token is None:
            tokenizer.add_special_tokens({"pad_token": AddedToken(PAD, special=True, normalized=False)})
        return tokenizer, first


def _release(language: str, every: int) -> Parts:
    return Parts("ViT-L-14", language, "openai", cross_attn_every_n_layers=every)


RELEASES = {
    "OpenFlamingo-3B-vitl-mpt1b": _release("mosaicml/mpt-1b-redpajama-200b", 1),
    "OpenFlamingo-3B-vitl-mpt1b-langinstruct": _release("mosaicml/mpt-1b-redpajama-200b-dolly", 1),
    "OpenFlamingo-4B-vitl-rpj3b": _release("togethercomputer/RedPajama-INCITE-Base-3B-v1", 2),
    "OpenFlamingo-4B-vitl-rpj3b-langinstruct": _release(
        "togethercomputer/RedPajama-INCITE-Instruct-3B-v1", 2
    ),
    "OpenFlamingo-9B-vitl-mpt7b": _release("mosaicml/mpt-7b", 4),
}
"""The published checkpoints, by their names under `openflamingo/`, and their parts (the project's README)."""


def download(name: str) -> Path | None:
    """The local copy of a release by its hub name (`openflamingo/...`), fetched if need be; None for other names."""
    organisation, _, release = name.partition("/")
    if organisation != "openflamingo" or release not in RELEASES:
        return None
    return snapshot(name, [CHECKPOINT], f"{CHECKPOINT} of {name}")


def read_parts(directory: Path) -> Parts:
    """The parts of a checkpoint: of openflamingo.json (or .yaml), or of the release that the directory is named after.

    Raises FlamingoError, naming the file and field, where they are not told or not right.
    """
    path = next((directory / name for name in PARTS if (directory / name).is_file()), None)
    if path is not None:
        return _parts(path)
    names = {directory.name, *(parent.name.rpartition("--")[2] for parent in directory.resolve().parents)}
    if known := names & RELEASES.keys():
        return RELEASES[known.pop()]
    wanted = ", ".join(field.name for field in fields(Parts))
    raise FlamingoError(
        f"{directory} holds {CHECKPOINT} but no {PARTS[0]}; write one with {wanted}, or name the directory after a "
        f"release ({', '.join(RELEASES)})"
    )


def parts_to_dict(parts: Parts) -> dict[str, Any]:
    """Plain data for openflamingo.json."""
    return asdict(parts)


def _parts(path: Path) -> Parts:
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise FlamingoError(f"cannot read {path}: {error}; expected the parts as json or yaml") from error
    if not isinstance(value, dict):
        raise FlamingoError(f"{path} holds a {type(value).__name__}; expected the parts by their names")
    for name in value:
        check_choice(f"field of {path}:", str(name), [field.name for field in fields(Parts)])
    for name in ("clip_vision_encoder_path", "lang_encoder_path"):
        if not isinstance(value.get(name), str):
            raise FlamingoError(f"{name} in {path} is {value.get(name)!r}; expected a name or a directory")
    every = value.get("cross_attn_every_n_layers", 1)
    if type(every) is not int or every < 1:
        raise FlamingoError(
            f"cross_attn_every_n_layers in {path} is {every!r}; expected an integer, at least 1"
        )
    return Parts(**value)


def _in(directory: Path, name: str) -> str:
    """The directory that `name` means, seen from the checkpoint; otherwise the name itself."""
    beside = directory / name
    return str(beside.resolve()) if beside.is_dir() else name
