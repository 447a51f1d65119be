"""A name that is not known: say so in one line, with the nearest right one."""

import difflib
from collections.abc import Iterable

from flamingo_lite.errors import FlamingoError


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` most resembles, or None if none comes near."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)), None)


def unknown(kind: str, name: str, known: Iterable[str]) -> FlamingoError:
    """The error to raise: "unknown preset 'quikstart'; did you mean 'quickstart'? (known: ...)"."""
    names = sorted(known)
    best = nearest(name, names)
    hint = f"; did you mean '{best}'?" if best else ""
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return FlamingoError(f"unknown {kind} '{name}'{hint} (known: {shown})")


def check_choice(kind: str, name: str, known: Iterable[str]) -> None:
    """Errors: `FlamingoError` with the nearest right name unless `name` is among `known`."""
    names = list(known)
    if name not in names:
        raise unknown(kind, name, names)
