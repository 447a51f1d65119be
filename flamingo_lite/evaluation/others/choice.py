"""What `models={NAME: ...}` may say of a model: a directory, or where else it is and how it is run."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.rendering import RENDERINGS
from flamingo_lite.names import check_choice
from flamingo_lite.teacher import TeacherOptions

Kind = Literal["auto", "ours", "transformers"]

KEY_LIKE = re.compile(r"(^|\s)sk-|://[^/]*@")
"""What no address or name holds, unless a key was put there."""


@dataclass(frozen=True)
class ModelChoice:
    """One model. One of `path` (a directory), `hub` (a name on the hub, at `revision`) and `endpoint` (the name of a
    model behind `base_url`) says where it is.

    `kind`: whether a format that both we and transformers read is run by our code (auto) or by transformers' class.
    `rendering`: how this model is shown prompts, in place of `eval.rendering`. `dtype`: of transformers' weights, by
    default that of the files. The rest is of endpoints; see `TeacherOptions`.
    Errors: `FlamingoError` naming what does not fit together.
    """

    path: str = ""
    hub: str = ""
    revision: str | None = None
    endpoint: str = ""
    kind: Kind = "auto"
    rendering: str | None = None
    dtype: str = "auto"
    base_url: str = ""
    key_variable: str = "OPENAI_API_KEY"
    limit_field: str = "max_tokens"
    temperature: float | None = 0.0
    budget: int | None = None
    concurrency: int = 8
    timeout: float = 120.0
    tries: int = 6
    pause: float = 0.5
    cache: str | None = None
    image_tokens: int = 4096

    def __post_init__(self) -> None:
        given = [name for name in ("path", "hub", "endpoint") if getattr(self, name)]
        if len(given) != 1:
            raise FlamingoError(
                f"names {' and '.join(given) or 'no place'}; expected one of path, hub, endpoint"
            )
        check_choice("kind of model", self.kind, get_args(Kind))
        if self.rendering is not None:
            check_choice("rendering", self.rendering, RENDERINGS)
        if self.revision is not None and not self.hub:
            raise FlamingoError("names a revision, but no hub model; a revision belongs to hub=NAME")
        if KEY_LIKE.search(f"{self.endpoint} {self.base_url} {self.key_variable}"):
            raise FlamingoError(
                "looks as if it held a key; the key stays in the environment, under the name in key_variable"
            )
        self._check_idle()
        if self.image_tokens < 1:
            raise FlamingoError(f"image_tokens is {self.image_tokens}; expected 1 or more")

    def _check_idle(self) -> None:
        """Errors: `FlamingoError` for a setting that nothing would follow."""
        own = ("kind", "dtype")
        shared = ("path", "hub", "revision", "endpoint", "rendering")
        for field in fields(self):
            is_idle = field.name in own if self.endpoint else field.name not in (*own, *shared)
            if is_idle and getattr(self, field.name) != field.default:
                of = "models that run here" if self.endpoint else "models behind an endpoint"
                raise FlamingoError(f"names {field.name}, which is of {of}; leave it out")

    @property
    def teacher_options(self) -> TeacherOptions:
        """Errors: `FlamingoError` naming a value that cannot be."""
        check_choice("limit_field", self.limit_field, ("max_tokens", "max_completion_tokens"))
        return TeacherOptions(
            model=self.endpoint,
            base_url=self.base_url,
            key_variable=self.key_variable,
            limit_field=self.limit_field,  # pyrefly: ignore[bad-argument-type]
            temperature=self.temperature,
            budget=self.budget,
            concurrency=self.concurrency,
            timeout=self.timeout,
            tries=self.tries,
            pause=self.pause,
            cache=None if self.cache is None else Path(self.cache),
        )


def model_choice(name: str, said: Any) -> ModelChoice:
    """What is said of the model `name`. Errors: `FlamingoError` naming it and what is wrong."""
    where = f"models.{name}"
    if isinstance(said, str):
        said = {"path": said}
    if not isinstance(said, Mapping):
        raise FlamingoError(
            f"{where} is {said!r}; expected a directory, or {{hub: NAME}} or {{endpoint: NAME}}"
        )
    kinds = get_type_hints(ModelChoice)
    known = [field.name for field in fields(ModelChoice)]
    for key, value in said.items():
        check_choice(f"setting of {where}", str(key), known)
        if not _fits(value, kinds[key]):
            raise FlamingoError(f"{where}.{key} is {value!r}; expected {_words(kinds[key])}")
    try:
        return ModelChoice(**said)
    except FlamingoError as error:
        raise FlamingoError(f"{where}: {error}") from None


def _fits(value: Any, kind: Any) -> bool:
    allowed = get_args(kind) or (kind,)
    if kind is Kind:
        allowed = (str,)
    if float in allowed:
        allowed = (*allowed, int)
    return type(value) in allowed


def _words(kind: Any) -> str:
    names = {str: "a text", int: "a whole number", float: "a number", type(None): "nothing"}
    return "a text" if kind is Kind else " or ".join(names[each] for each in get_args(kind) or (kind,))
