"""The check that every component's config makes of its sizes: a size is an integer, at least 1."""

from __future__ import annotations

from collections.abc import Iterable

from flamingo_lite.errors import FlamingoError


def check_sizes(part: str, config: object, names: Iterable[str]) -> None:
    """Errors: `FlamingoError` naming the first of the fields `names` of `config` that is no size.

    `part`: what the config is of, "connector". A field that may be None is checked when it is not.
    """
    for name in names:
        value = getattr(config, name)
        if type(value) is not int or value < 1:
            raise FlamingoError(f"{part}.{name} is {value!r}; expected an integer, at least 1")


def check_optional_sizes(part: str, config: object, names: Iterable[str]) -> None:
    """As `check_sizes`, for fields whose None stands for something."""
    check_sizes(part, config, [name for name in names if getattr(config, name) is not None])
