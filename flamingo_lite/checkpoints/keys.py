"""Key maps between a foreign checkpoint and a model here: rules that are read in both directions.

A format is a list of rules; what it calls a weight and what it is called here stand side by side in each.
Shape letters: k new tokens, v vocabulary, d width.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from flamingo_lite.errors import FlamingoError

State = dict[str, Tensor]

SHOWN = 3
"""How many keys of a group an error names; the others are counted."""


class Rule(Protocol):
    """Moves the tensors that it knows out of one state and returns them as the other side has them."""

    def to_ours(self, theirs: State) -> State: ...

    def to_theirs(self, ours: State) -> State: ...


@dataclass(frozen=True)
class Rename:
    """One tensor under two names. A `*` in both stands for the same rest, dots included.

    `shape`: that of theirs where ours is flat, -1 for what follows from the number of elements.
    """

    theirs: str
    ours: str
    shape: tuple[int, ...] | None = None

    def to_ours(self, theirs: State) -> State:
        moved = {_fill(self.ours, rest): theirs.pop(key) for key, rest in _matches(self.theirs, theirs)}
        return moved if self.shape is None else {key: value.flatten() for key, value in moved.items()}

    def to_theirs(self, ours: State) -> State:
        moved = {_fill(self.theirs, rest): ours.pop(key) for key, rest in _matches(self.ours, ours)}
        return (
            moved if self.shape is None else {key: value.reshape(self.shape) for key, value in moved.items()}
        )


@dataclass(frozen=True)
class Join:
    """Several of theirs are one of ours, in equal parts one below the other (keys and values, for one)."""

    theirs: tuple[str, ...]
    ours: str

    def to_ours(self, theirs: State) -> State:
        return {
            _fill(self.ours, rest): torch.cat([theirs.pop(_fill(part, rest)) for part in self.theirs])
            for _, rest in _matches(self.theirs[0], theirs)
        }

    def to_theirs(self, ours: State) -> State:
        moved: State = {}
        for key, rest in _matches(self.ours, ours):
            parts = ours.pop(key).chunk(len(self.theirs))
            # Apart in memory too: safetensors refuses tensors that share it.
            moved |= {_fill(name, rest): part.clone() for name, part in zip(self.theirs, parts, strict=True)}
        return moved


@dataclass(frozen=True)
class NewRows:
    """Their one matrix (v d) is ours (first d) with the new tokens' rows (k d) below it."""

    theirs: str
    ours: str
    new_rows: str
    first: int

    def to_ours(self, theirs: State) -> State:
        if self.theirs not in theirs:
            return {}
        matrix = theirs.pop(self.theirs)
        return {self.ours: matrix[: self.first], self.new_rows: matrix[self.first :]}

    def to_theirs(self, ours: State) -> State:
        if self.ours not in ours or self.new_rows not in ours:
            return {}
        return {self.theirs: torch.cat((ours.pop(self.ours)[: self.first], ours.pop(self.new_rows)))}


def under(theirs: str, ours: str, rules: Iterable[Rule]) -> list[Rule]:
    """The rules of a part, for the part that stands under the prefix `theirs` there and `ours` here."""
    placed: list[Rule] = []
    for rule in rules:
        if isinstance(rule, Rename):
            placed.append(Rename(theirs + rule.theirs, ours + rule.ours, rule.shape))
        elif isinstance(rule, Join):
            placed.append(Join(tuple(theirs + name for name in rule.theirs), ours + rule.ours))
        elif isinstance(rule, NewRows):
            placed.append(NewRows(theirs + rule.theirs, ours + rule.ours, ours + rule.new_rows, rule.first))
        else:
            raise TypeError(f"{rule!r} is no rule that can be placed under a prefix")
    return placed


def to_ours(rules: Sequence[Rule], theirs: Mapping[str, Tensor]) -> State:
    """Every tensor that a rule knows, as it is called and shaped here; the first rule that knows a key has it."""
    left, moved = dict(theirs), {}
    for rule in rules:
        moved |= rule.to_ours(left)
    return moved


def to_theirs(rules: Sequence[Rule], ours: Mapping[str, Tensor]) -> State:
    """Every tensor of a model as the format has it.

    Raises FlamingoError for tensors that no rule knows: the format has no place for them.
    """
    left, moved = dict(ours), {}
    for rule in rules:
        moved |= rule.to_theirs(left)
    if left:
        raise FlamingoError(f"the format has no place for {_named(left)} of this model")
    return moved


def put_weights(
    model: nn.Module,
    theirs: Mapping[str, Tensor],
    rules: Sequence[Rule],
    source: str,
    *,
    unread: Iterable[str] = (),
    optional: Iterable[str] = (),
) -> State:
    """Copies a foreign checkpoint into `model`; returns the tensors whose keys match `unread`.

    `unread`: patterns of keys that may be there and have no effect on what the model computes. `optional`: of those
    that may be missing, the model then keeps what it has. Raises FlamingoError for any other key that is missing,
    superfluous, or of another shape than the model's config asks for, by group.
    """
    own, expected = _own(model), expected_by(model, rules)
    skipped = {k: value for k, value in theirs.items() if k not in expected and _is_one_of(k, unread)}
    read = {key: value for key, value in theirs.items() if key not in skipped}
    check_keys(read, expected, source, optional)
    with torch.no_grad():
        for name, value in to_ours(rules, read).items():
            own[name].copy_(value)
    return skipped


def expected_by(model: nn.Module, rules: Sequence[Rule]) -> State:
    """Keys and shapes that a checkpoint of `model` has; without numbers (on the meta device)."""
    return to_theirs(rules, {name: value.detach().to("meta") for name, value in _own(model).items()})


def take_weights(model: nn.Module, rules: Sequence[Rule]) -> State:
    """The weights of `model` as the format has them, on the CPU; a tied weight once, under its first name."""
    moved = to_theirs(rules, {name: value.detach() for name, value in _own(model).items()})
    return {key: value.cpu().contiguous() for key, value in moved.items()}


def check_keys(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str, optional: Iterable[str] = ()
) -> None:
    """Raise FlamingoError unless the keys and shapes of `found` are those of `expected`, by group in one line."""
    missing = [key for key in expected if key not in found and not _is_one_of(key, optional)]
    superfluous = [key for key in found if key not in expected]
    misshapen = [
        f"{key} {tuple(found[key].shape)} (expected {tuple(expected[key].shape)})"
        for key in expected
        if key in found and found[key].shape != expected[key].shape
    ]
    groups = {"missing": missing, "superfluous": superfluous, "of another shape": misshapen}
    if any(groups.values()):
        said = "; ".join(f"{len(keys)} {what}: {_named(keys)}" for what, keys in groups.items() if keys)
        raise FlamingoError(
            f"the weights in {source} do not fit its config: {said}; expected exactly those that the config describes"
        )


def _own(model: nn.Module) -> State:
    """Parameters and saved buffers, a tied weight once, under its first name."""
    own: State = {}
    seen: set[int] = set()
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            own[name] = value
        seen.add(id(value))
    return own


def _matches(pattern: str, keys: Iterable[str]) -> list[tuple[str, str]]:
    """(key, what `*` stands for) of each key that the pattern matches."""
    head, star, tail = pattern.partition("*")
    if not star:
        return [(pattern, "")] if pattern in set(keys) else []
    return [
        (key, key[len(head) : len(key) - len(tail)])
        for key in keys
        if len(key) >= len(head) + len(tail) and key.startswith(head) and key.endswith(tail)
    ]


def _fill(pattern: str, rest: str) -> str:
    return pattern.replace("*", rest, 1)


def _is_one_of(key: str, patterns: Iterable[str]) -> bool:
    return any(re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), key) for pattern in patterns)


def _named(keys: Iterable[str]) -> str:
    names = list(keys)
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
