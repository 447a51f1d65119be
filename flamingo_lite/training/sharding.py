"""FSDP2: every rank holds its share of each layer, frozen ones included, and gathers a layer while it computes.

Units are the decoder layers, the cross-attention blocks in them and the vision encoder's layers; what is left
(embeddings, head, connector) is one more. A unit's gradients exist for what trains alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map

from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.language import decoder_layers
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.nn.whole import whole


def sharding_units(model: VisionLanguageModel) -> list[nn.Module]:
    """The modules that are gathered one at a time, inner ones first."""
    stacks = [list(m) for m in model.vision.modules() if isinstance(m, nn.ModuleList | nn.Sequential)]
    vision = [layer for stack in stacks if len({type(layer) for layer in stack}) == 1 for layer in stack]
    units = [*reversed(vision), *model.blocks.values(), *decoder_layers(model.language)]
    return list(dict.fromkeys(units))


class ShardedStrategy(DDPStrategy):
    """Lightning's DDP strategy with `fully_shard` in place of the wrapper.

    Checkpoints are those of DDP and of a single device: whole tensors of what trains, so that a run resumes under
    another strategy and on another number of ranks.
    """

    def model_to_device(self) -> None:
        """Shards on the way: no device ever holds the whole model."""
        module: Any = self.lightning_module
        if any(not p.dtype.is_floating_point for p in module.parameters()):
            raise FlamingoError(
                "the policy quantizes weights (qlora), and these are not shared among devices; use trainer.strategy=ddp"
            )
        self._skeleton = skeleton(module.model)
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        for unit in sharding_units(module.model):
            fully_shard(unit, mesh=mesh)
        fully_shard(module.model, mesh=mesh)
        module.to(self.root_device)

    def configure_ddp(self) -> None:
        """Nothing is wrapped: the model's own modules have become sharded ones."""

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Gradients stay where they are until the last batch that a step accumulates."""
        sharded = [m for m in self._sharded().modules() if isinstance(m, FSDPModule)]
        for module in sharded:
            module.set_requires_gradient_sync(False, recurse=False)
        try:
            yield
        finally:
            for module in sharded:
                module.set_requires_gradient_sync(True, recurse=False)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """What trains, gathered whole: on the CPU of every rank."""
        named = self._sharded().named_parameters()
        return {name: whole(p.detach()).cpu() for name, p in named if p.requires_grad}

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return tree_map(_gathered, optimizer.state_dict())

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            moments = {
                number: _spread(state["state"][number], parameters[number]) for number in state["state"]
            }
            optimizer.load_state_dict({**state, "state": moments})

    def assembled(self) -> VisionLanguageModel:
        """The model as it was before, with the weights of now, on the CPU of the first rank; all ranks call this
        together, and on the others it has no weights.
        """
        module: Any = self.lightning_module
        return assemble(module.model, self._skeleton, is_first=self.global_rank == 0)

    def _sharded(self) -> nn.Module:
        assert self.lightning_module is not None
        return self.lightning_module


def skeleton(model: VisionLanguageModel) -> VisionLanguageModel:
    """A copy of `model` whose parameters have no numbers (on the meta device)."""
    empty = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in model.parameters()
    }
    return copy.deepcopy(model, memo=empty)


def assemble(sharded: nn.Module, bare: VisionLanguageModel, is_first: bool) -> VisionLanguageModel:
    """Gives the first rank's `bare` skeleton the gathered weights of `sharded`, one after the other."""
    empty = dict(bare.named_parameters())  # shared ones once, as in `sharded`
    filled: dict[int, nn.Parameter] = {}
    for name, parameter in sharded.named_parameters():
        gathered = whole(parameter.detach())
        if is_first:
            filled[id(empty[name])] = nn.Parameter(gathered.cpu(), requires_grad=parameter.requires_grad)
    for module in bare.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in filled:
                module._parameters[name] = filled[id(parameter)]
    return bare


def local(tensor: Tensor) -> Tensor:
    """This rank's share of `tensor`."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _gathered(value: Any) -> Any:
    return whole(value).cpu() if isinstance(value, DTensor) else value


def _spread(moments: dict[str, Any], parameter: nn.Parameter) -> dict[str, Any]:
    """The state of one parameter, cut as the parameter itself is."""
    if not isinstance(parameter, DTensor):
        return moments
    return {
        name: _share(value, parameter)
        if isinstance(value, Tensor) and value.shape == parameter.shape
        else value
        for name, value in moments.items()
    }


def _share(value: Tensor, parameter: DTensor) -> DTensor:
    # FSDP2 cuts along the first dimension, as torch.chunk does; the last ranks may get nothing.
    mesh = parameter.device_mesh
    shares = list(value.chunk(mesh.size()))
    empty = value[:0]
    rank = mesh.get_local_rank()
    mine = (shares[rank] if rank < len(shares) else empty).to(parameter.to_local().device).contiguous()
    return DTensor.from_local(
        mine, mesh, parameter.placements, run_check=False, shape=parameter.shape, stride=parameter.stride()
    )
