"""The tuning policy: which parameters train, as an ordered table applied in one place and printed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from rich.table import Table
from torch import Tensor, nn

from flamingo_lite.errors import FlamingoError
from flamingo_lite.names import check_choice
from flamingo_lite.nn.whole import whole

STATUSES = ("frozen", "full")

DEFAULT_POLICY: dict[str, str] = {
    "*": "frozen",
    "connector.*": "full",
    "*.cross_attention.*": "full",
    "*.new_rows": "full",
}


@dataclass(frozen=True)
class PolicyRow:
    """What one entry decided: how many tensors and numbers have this pattern as the last that matches
    them.
    """

    pattern: str
    status: str
    tensors: int
    numbers: int


def apply_policy(model: nn.Module, policy: Mapping[str, str] | None = None) -> list[PolicyRow]:
    """Set `requires_grad` of every parameter by the last entry that matches its name; returns the table.

    `policy` entries (glob pattern -> "frozen" or "full") follow those of `DEFAULT_POLICY`. Raises
    FlamingoError for an unknown status and for a pattern that matches nothing.
    """
    table = dict(DEFAULT_POLICY)
    names = [name for name, _ in model.named_parameters()]
    for pattern, status in (policy or {}).items():
        check_choice("policy", status, STATUSES)
        if not any(fnmatchcase(name, pattern) for name in names):
            parts = ", ".join(sorted({name.split(".")[0] for name in names}))
            raise FlamingoError(
                f"policy pattern {pattern!r} matches no parameter; their names start with {parts}"
            )
        table.pop(pattern, None)  # an entry given again moves to the end: later ones win
        table[pattern] = status
    deciding = {name: [p for p in table if fnmatchcase(name, p)][-1] for name in names}
    count = dict.fromkeys(table, 0)
    numbers = dict.fromkeys(table, 0)
    for name, parameter in model.named_parameters():
        pattern = deciding[name]
        parameter.requires_grad_(table[pattern] == "full")
        count[pattern] += 1
        numbers[pattern] += parameter.numel()
    # A default may be about a part that this model lacks, such as blocks under prefix fusion.
    matching = [p for p in table if any(fnmatchcase(name, p) for name in names)]
    return [PolicyRow(p, table[p], count[p], numbers[p]) for p in matching]


def policy_table(rows: list[PolicyRow]) -> Table:
    """The rows for the console."""
    table = Table(title="What trains (the last pattern that matches decides)")
    table.add_column("pattern")
    table.add_column("policy")
    table.add_column("tensors", justify="right")
    table.add_column("parameters", justify="right")
    for row in rows:
        style = "green" if row.status == "full" else None
        table.add_row(row.pattern, row.status, f"{row.tensors:,}", f"{row.numbers:,}", style=style)
    trained = sum(row.numbers for row in rows if row.status != "frozen")
    total = sum(row.numbers for row in rows)
    table.add_section()
    table.add_row("all", f"{trained / max(total, 1):.1%} trains", "", f"{trained:,} / {total:,}")
    return table


def trainable_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that train, detached, by name."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def load_trainable_state_dict(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy `state` into the parameters that train; raises FlamingoError unless names and shapes agree
    exactly.
    """
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    misshapen = [name for name in own if name in state and own[name].shape != state[name].shape]
    if missing or unknown or misshapen:
        first = (missing + unknown + misshapen)[0]
        raise FlamingoError(
            f"trained parameters do not fit the model: {len(missing)} missing, {len(unknown)} unknown, "
            f"{len(misshapen)} of another shape (first: {first}); build the model with the config of the "
            "checkpoint"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state[name])


def frozen_sha256(model: nn.Module) -> dict[str, str]:
    """sha256 of the frozen parameters of each part ("vision", "language", ...): names, types, shapes and
    bytes.
    """
    digests: dict[str, hashlib._Hash] = {}
    for name, parameter in sorted(model.named_parameters(), key=lambda item: item[0]):
        if parameter.requires_grad:
            continue
        digest = digests.setdefault(name.split(".")[0], hashlib.sha256())
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        digest.update(whole(parameter.detach()).cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return {part: digest.hexdigest() for part, digest in digests.items()}
