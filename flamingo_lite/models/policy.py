"""The tuning policy: which parameters train, and how, as an ordered table applied in one place and printed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor, nn

from flamingo_lite.errors import FlamingoError
from flamingo_lite.models.adapters import (
    BASE,
    MARK,
    Adapter,
    adaptable,
    insert_adapters,
    packed_numbers,
    quantize_adapted,
)
from flamingo_lite.names import check_choice, nearest
from flamingo_lite.nn.whole import whole

ADAPTERS = ("lora", "qlora")
MODES = ("frozen", "full", *ADAPTERS, "bias_norm", "new_rows")

DEFAULT_POLICY: dict[str, Any] = {
    "*": "frozen",
    "connector.*": "full",
    "*.cross_attention.*": "full",
    "*.new_rows": "full",
}

VISION, CONNECTOR, BLOCKS, LANGUAGE, NEW_ROWS, ADAPTED = PARTS = (
    "vision encoder", "connector", "cross-attention", "language model", "new rows", "adapters",
)  # fmt: skip
"""What a user calls the parts of a model."""


@dataclass(frozen=True)
class PolicyEntry:
    """What happens to the parameters that a pattern matches.

    `mode`: "frozen" and "full" decide about all of them. The others decide about those they can train, and leave
    the rest to the entries before: "bias_norm" about biases and norms, "new_rows" about the rows of new tokens,
    "lora" and "qlora" about the linear maps that the entries before have left frozen (`targets`: those of these last
    names alone), which stay frozen beside adapters of `rank`, `alpha` and `dropout`; "qlora" holds them in four bits.
    `learning_rate`, `weight_decay`: in place of the optimizer's; biases, norms and gates never decay.
    """

    mode: str = "full"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    learning_rate: float | None = None
    weight_decay: float | None = None

    @property
    def adapter(self) -> Adapter | None:
        if self.mode not in ADAPTERS:
            return None
        return Adapter(self.rank, float(self.alpha), float(self.dropout), self.mode == "qlora")


FROZEN = PolicyEntry("frozen")


@dataclass(frozen=True)
class Decision:
    """The entry that decides about a parameter, and whether it trains."""

    pattern: str
    entry: PolicyEntry
    trains: bool


@dataclass(frozen=True)
class PolicyRow:
    """What one entry decided about one part: how many tensors and numbers, how many of these train, their types."""

    part: str
    pattern: str
    entry: PolicyEntry
    tensors: int
    numbers: int
    trainable: int
    dtypes: tuple[str, ...]


def apply_policy(model: nn.Module, policy: Mapping[str, Any] | None = None) -> list[PolicyRow]:
    """Puts in the adapters that the policy wants and sets `requires_grad` of every parameter; returns the table.

    `policy` entries (glob pattern -> a mode, or the fields of `PolicyEntry`) follow those of `DEFAULT_POLICY`, and
    the last that decides about a parameter holds. Raises FlamingoError for an unknown mode or field, for a pattern that
    matches nothing or finds nothing to train, and for weights of four bits that are to train.
    """
    found = decide(model, policy)
    wanted = {
        name: adapter
        for name, _ in adaptable(model)
        for weight in (f"{name}.weight", f"{name}{BASE}.weight")
        if weight in found and (adapter := found[weight].entry.adapter) is not None
    }
    if wanted:
        insert_adapters(model, wanted)
        found = decide(model, policy)
    quantize_adapted(model)
    for name, parameter in model.named_parameters():
        if found[name].trains and not parameter.is_floating_point():
            raise FlamingoError(
                f"policy {found[name].pattern!r} trains {name}, which is held in {parameter.dtype}; freeze it, or merge "
                "the adapters first"
            )
        parameter.requires_grad_(found[name].trains)
    return _rows(model, found)


def decide(model: nn.Module, policy: Mapping[str, Any] | None = None) -> dict[str, Decision]:
    """By parameter, which entry decides; changes nothing. Errors: those of `apply_policy`."""
    table = {pattern: parse_entry(pattern, value) for pattern, value in DEFAULT_POLICY.items()}
    given = {pattern: parse_entry(pattern, value) for pattern, value in (policy or {}).items()}
    for pattern, entry in given.items():
        table.pop(pattern, None)  # an entry given again moves to the end: later ones win
        table[pattern] = entry
    facts = _Facts(model)
    names = [name for name, _ in model.named_parameters()]
    found = {name: Decision("*", FROZEN, False) for name in names}
    for pattern, entry in table.items():
        matched = [name for name in names if _matches(name, pattern)]
        if not matched and pattern in given:
            raise _matches_nothing(pattern, names)
        if pattern in given:
            facts.check_targets(entry, pattern, matched)
        claimed = [name for name in matched if facts.claims(entry, name, is_frozen=not found[name].trains)]
        if matched and not claimed and pattern in given:
            raise FlamingoError(
                f"policy {pattern!r}: {entry.mode} finds nothing to train there; {CLAIMS[entry.mode]}"
            )
        trains = entry.mode not in ("frozen", *ADAPTERS)
        found |= dict.fromkeys(claimed, Decision(pattern, entry, trains))
    for name in names:
        weight = found.get(f"{name.partition(MARK)[0]}{BASE}.weight") if MARK in name else None
        if weight is not None and weight.entry.adapter is not None:
            found[name] = Decision(weight.pattern, weight.entry, True)
    return found


CLAIMS = {
    "lora": "it adapts linear maps (targets) that the entries before it leave frozen, the head excepted",
    "qlora": "it adapts linear layers (targets) that the entries before it leave frozen, the head excepted",
    "bias_norm": "expected a pattern that matches biases or norms",
    "new_rows": "expected a pattern that matches the rows of new tokens",
}


def parse_entry(pattern: str, value: Any) -> PolicyEntry:
    """An entry from a mode, or from the fields of `PolicyEntry`. Errors: `FlamingoError` that names the field."""
    if isinstance(value, PolicyEntry):
        return value
    given: Any = {"mode": value} if isinstance(value, str) else value
    if not isinstance(given, Mapping):
        raise FlamingoError(
            f"policy {pattern!r} is {value!r}; expected a mode ({', '.join(MODES)}) or fields with one"
        )
    for name in given:
        check_choice(
            f"field of policy {pattern!r}:", str(name), [field.name for field in fields(PolicyEntry)]
        )
    mode = given.get("mode", "full")
    check_choice("policy", str(mode), MODES)
    for name in ("rank", "alpha", "dropout", "targets"):
        if name in given and mode not in ADAPTERS:
            raise FlamingoError(
                f"policy {pattern!r} has {name}, which {mode} does not read; leave it out, or choose mode lora or qlora"
            )
    for name, least, below in NUMBERS:
        number = given.get(name)
        if number is None:
            continue
        if not isinstance(number, int | float) or isinstance(number, bool) or not least <= number < below:
            raise FlamingoError(
                f"policy {pattern!r}: {name} is {number!r}; expected a number from {least:g} on"
            )
    if not isinstance(given.get("rank", 1), int):
        raise FlamingoError(f"policy {pattern!r}: rank is {given['rank']!r}; expected a whole number")
    targets = given.get("targets", ())
    if isinstance(targets, str) or not isinstance(targets, Sequence):
        raise FlamingoError(
            f"policy {pattern!r}: targets is {targets!r}; expected a list of names, as [q_proj]"
        )
    values: dict[str, Any] = {**given, "targets": tuple(targets)}
    return PolicyEntry(**values)


NUMBERS = (
    ("rank", 1, float("inf")), ("alpha", 0, float("inf")), ("dropout", 0, 1), ("learning_rate", 0, float("inf")),
    ("weight_decay", 0, float("inf")),
)  # fmt: skip


class _Facts:
    """What the modes ask of a parameter, found once per model."""

    def __init__(self, model: nn.Module) -> None:
        modules = dict(model.named_modules())
        self.adaptable = {name: modules[name] for name, _ in adaptable(model)}
        self.norms = {name for name, module in modules.items() if "norm" in type(module).__name__.lower()}

    def claims(self, entry: PolicyEntry, name: str, is_frozen: bool) -> bool:
        owner, _, last = _plain(name).rpartition(".")
        if entry.mode in ("frozen", "full"):
            return True
        if MARK in name:  # an adapter, which goes with the weight beside which it stands
            return False
        if entry.mode == "bias_norm":
            return last.endswith("bias") or owner in self.norms
        if entry.mode == "new_rows":
            return last == "new_rows"
        return is_frozen and self._can_adapt(entry, owner)

    def check_targets(self, entry: PolicyEntry, pattern: str, names: Iterable[str]) -> None:
        """Errors: `FlamingoError` for a target that is no linear map among `names`, with the nearest that is."""
        owners = {_plain(name).rpartition(".")[0] for name in names}
        known = sorted({owner.rpartition(".")[2] for owner in owners if owner in self.adaptable})
        for target in entry.targets if known else ():
            check_choice(f"target of policy {pattern!r}:", target, known)

    def _can_adapt(self, entry: PolicyEntry, module: str) -> bool:
        found = self.adaptable.get(module)
        if found is None or (entry.targets and module.rpartition(".")[2] not in entry.targets):
            return False
        # Four bits are for nn.Linear, not for the transposed weights of GPT-2; quantized ones have an adapter already.
        return entry.mode == "lora" or hasattr(found, "base_layer") or isinstance(found, nn.Linear)


def _plain(name: str) -> str:
    """The name that a parameter has without the adapter beside it."""
    return name.replace(f"{BASE}.", ".")


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(_plain(name), pattern)


def _matches_nothing(pattern: str, names: Iterable[str]) -> FlamingoError:
    known = {_plain(name) for name in names}
    prefixes = {".".join(name.split(".")[:depth]) + ".*" for name in known for depth in (1, 2, 3)}
    best = nearest(pattern, sorted(prefixes | known))
    parts = ", ".join(sorted({name.split(".")[0] for name in known}))
    hint = f"; did you mean {best!r}?" if best else ""
    return FlamingoError(
        f"policy pattern {pattern!r} matches no parameter{hint} (their names start with {parts})"
    )


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to."""
    if MARK in name:
        return ADAPTED
    if name.rsplit(".", 1)[-1] == "new_rows":
        return NEW_ROWS
    if ".cross_attention." in name:
        return BLOCKS
    return {"vision": VISION, "connector": CONNECTOR}.get(name.split(".")[0], LANGUAGE)


def _rows(model: nn.Module, found: Mapping[str, Decision]) -> list[PolicyRow]:
    packed = packed_numbers(model)
    groups: dict[tuple[str, str], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault((part_of(name), found[name].pattern), []).append((name, parameter))
    return [
        PolicyRow(
            part,
            pattern,
            found[members[0][0]].entry,
            len(members),
            sum(packed.get(name, p.numel()) for name, p in members),
            sum(p.numel() for _, p in members if p.requires_grad),
            tuple(sorted({str(p.dtype).removeprefix("torch.") for _, p in members})),
        )
        for (part, pattern), members in sorted(groups.items(), key=lambda item: PARTS.index(item[0][0]))
    ]


def policy_table(rows: Sequence[PolicyRow], learning_rate: float | None = None) -> Table:
    """The rows for the console, in 80 columns mostly; `learning_rate`: the optimizer's, where an entry gives none."""
    trained, total = sum(row.trainable for row in rows), sum(row.numbers for row in rows)
    dtypes = {", ".join(row.dtypes) for row in rows}
    same = f", all in {dtypes.pop()}" if len(dtypes) == 1 else ""
    table = Table(
        title=f"What trains: {trained / max(total, 1):.1%}{same} (the last pattern that decides)",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    for name in ("part", "pattern", "policy"):
        table.add_column(name, overflow="fold")
    for name in ("parameters", "trainable", *([] if same else ["dtype"]), "learning\nrate"):
        # In a narrow terminal words are broken, and no number is.
        is_number = name in ("parameters", "trainable")
        table.add_column(name, justify="right", overflow="fold", no_wrap=is_number)
    for row in rows:
        rate = learning_rate if row.entry.learning_rate is None else row.entry.learning_rate
        table.add_row(
            row.part,
            row.pattern,
            row.entry.mode,
            f"{row.numbers:,}",
            f"{row.trainable:,}",
            *([] if same else [", ".join(row.dtypes)]),
            f"{rate:g}" if rate is not None and row.trainable else "",
            style="green" if row.trainable else None,
        )
    table.add_section()
    table.add_row("all", "", "", f"{total:,}", f"{trained:,}")
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
    parts: dict[str, list[tuple[str, Tensor]]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            parts.setdefault(name.split(".")[0], []).append((name, parameter))
    return {part: _sha256_of(named) for part, named in sorted(parts.items())}


def sha256_of_module(module: nn.Module) -> str:
    """sha256 of all parameters and buffers, of those too that a policy trains: names, types, shapes and bytes."""
    return _sha256_of([*module.named_parameters(), *module.named_buffers()])


def _sha256_of(named: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(named, key=lambda item: item[0]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(whole(tensor.detach()).cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
