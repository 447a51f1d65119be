"""The parts of a transformers encoder, found by structure: its blocks, what runs behind the last one, its last norm,
and how to take out what has no effect on the features of one block.

Everything is found on a shell, a copy without numbers on the meta device, so nothing is computed.
Shape letters: m images, s tokens, d width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from flamingo_lite.errors import FlamingoError, first_line
from flamingo_lite.models.tower import VisionTower, pair


@dataclass(frozen=True)
class Structure:
    """Names of an encoder's parts: its blocks; the outermost modules that run after the last block; of those the
    last norm, if there is one."""

    blocks: str
    behind: tuple[str, ...]
    norm: str | None


class Bypass(nn.Module):
    """Returns its first argument: stands where a part was that has no effect on what is read."""

    def forward(self, first: Any, *args: Any, **kwargs: Any) -> Any:
        return first


def first_argument(first: Any, *args: Any, **kwargs: Any) -> Any:
    return first


def structure_of(shell: PreTrainedModel, config: Any, size: tuple[int, int]) -> Structure:
    """Found by watching one image pass through a copy without numbers (the meta device)."""
    name, blocks = _blocks(shell, config.num_hidden_layers)
    entered: list[str] = []
    at_end: list[int] = []
    hooks = [
        part.register_forward_pre_hook(lambda *_, path=path: entered.append(path))
        for path, part in shell.named_modules()
        if path
    ]
    hooks.append(blocks[-1].register_forward_hook(lambda *_: at_end.append(len(entered))))
    _run(shell, size, type(shell).__name__)
    for hook in hooks:
        hook.remove()
    before, after = set(entered[: at_end[0]]), list(dict.fromkeys(entered[at_end[0] :]))
    behind = [
        path for path in after if path not in before and not any(path.startswith(f"{p}.") for p in after)
    ]
    norm = next((path for path in behind if _is_norm(shell.get_submodule(path))), None)
    return Structure(name, tuple(behind), norm)


def _blocks(shell: nn.Module, count: int) -> tuple[str, nn.ModuleList]:
    found = [(n, m) for n, m in shell.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if len(found) != 1:
        raise FlamingoError(
            f"{type(shell).__name__} has {len(found)} module lists of length {count}, expected exactly one; its blocks "
            "cannot be told apart, so no layer can be read"
        )
    return found[0]


def _is_norm(module: nn.Module) -> bool:
    shapes = [tuple(p.shape) for p in module.parameters()]
    return bool(shapes) and not list(module.children()) and all(len(shape) == 1 for shape in shapes)


def cut(module: nn.Module, structure: Structure, tower: VisionTower) -> None:
    blocks = cast(nn.ModuleList, module.get_submodule(structure.blocks))
    kept = len(blocks) + 1 + tower.layer
    if kept < 1:
        raise FlamingoError(
            f"vision.layer is {tower.layer}, but {type(module).__name__} has {len(blocks)} blocks; expected -1 (the "
            f"last) to {-len(blocks)} (the first)"
        )
    del blocks[kept:]
    for path in structure.behind:
        if path == structure.norm and tower.final_norm:
            # It stays where its weights are looked for, and is called by `read_features` alone.
            cast(Any, module.get_submodule(path)).forward = first_argument
        else:
            owner, _, last = path.rpartition(".")
            setattr(module.get_submodule(owner), last, Bypass())


def _run(shell: nn.Module, size: tuple[int, int], name: str) -> Tensor:
    try:
        return shell(pixel_values=torch.empty(1, 3, *size, device="meta")).last_hidden_state
    except (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError) as error:
        raise FlamingoError(
            f"{name} does not turn images of {size} pixels into features: {first_line(error)}; expected an encoder "
            "that takes pixel_values of that size alone"
        ) from error


def tokens_of(shell: nn.Module, size: tuple[int, int], name: str) -> tuple[int, int]:
    tokens = _run(shell, size, name)
    if tokens.dim() != 3:
        raise FlamingoError(
            f"{name} gives features of shape {tuple(tokens.shape)}; expected one token per patch"
        )
    return tokens.shape[1], tokens.shape[2]


def grid_of(config: Any, size: tuple[int, int]) -> int:
    (height, width), (down, across) = size, pair(config.patch_size)
    return (height // down) * (width // across)


def idle_parameters(shell: PreTrainedModel, size: tuple[int, int], structure: Structure) -> list[str]:
    """Parameters that the features do not depend on: a mask token, for one."""
    named = [(n, p) for n, p in shell.named_parameters() if n.rpartition(".")[0] != structure.norm]
    with torch.enable_grad():
        tokens = _run(shell, size, type(shell).__name__)
        found = torch.autograd.grad(tokens.sum(), [p for _, p in named], allow_unused=True)
    return [name for (name, _), gradient in zip(named, found, strict=True) if gradient is None]
