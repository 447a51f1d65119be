"""Which teacher is asked, and how: options that every command with a teacher shares."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from flamingo_lite.errors import FlamingoError
from flamingo_lite.names import check_choice
from flamingo_lite.teacher.asking import Asker
from flamingo_lite.teacher.cache import AnswerCache
from flamingo_lite.teacher.endpoint import Endpoint
from flamingo_lite.teacher.local import Local
from flamingo_lite.teacher.messages import Rule, Sampling, Teacher


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class TeacherOptions:
    """Errors: `FlamingoError` naming a value that cannot be."""

    model: str = _option("", "the model: its name at the endpoint, or its directory or name on the hub")
    base_url: str = _option("", "the endpoint's address, such as http://localhost:8000/v1; OpenAI's if empty")
    key_variable: str = _option("OPENAI_API_KEY", "the environment variable that holds the endpoint's key")
    limit_field: Literal["max_tokens", "max_completion_tokens"] = _option(
        "max_tokens", "what the endpoint calls the limit of an answer"
    )
    max_tokens: int = _option(1024, "tokens of an answer, at most")
    temperature: float | None = _option(None, "of sampling; none: as the model's settings say; 0: greedy")
    budget: int | None = _option(
        None, "tokens that all answers together may cost, those in the cache included"
    )
    concurrency: int = _option(8, "requests under way at once")
    timeout: float = _option(120.0, "seconds until a request counts as not answered")
    tries: int = _option(6, "of each request")
    pause: float = _option(0.5, "seconds before the second try; they double from there on")
    cache: Path | None = _option(
        None, "the folder of answers; none: .teacher in the directory that is written"
    )

    def __post_init__(self) -> None:
        for name in ("max_tokens", "concurrency", "tries"):
            if getattr(self, name) < 1:
                raise FlamingoError(f"{name} is {getattr(self, name)}; expected 1 or more")
        if self.budget is not None and self.budget < 1:
            raise FlamingoError(f"budget is {self.budget}; expected 1 token or more, or none")
        if self.temperature is not None and not self.temperature >= 0:
            raise FlamingoError(f"temperature is {self.temperature}; expected 0 or more, or none")
        if self.base_url and not self.base_url.startswith(("http://", "https://")):
            raise FlamingoError(
                f"base_url is {self.base_url}; expected an address that begins with http:// or https://"
            )
        for name in ("timeout", "pause"):
            if not getattr(self, name) > 0:
                raise FlamingoError(f"{name} is {getattr(self, name)}; expected seconds above 0")

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.max_tokens, self.temperature)


def _endpoint(options: TeacherOptions) -> Teacher:
    return Endpoint(
        options.model, options.base_url, options.key_variable, options.timeout, options.limit_field
    )


TEACHERS: dict[str, Callable[[TeacherOptions], Teacher]] = {
    "endpoint": _endpoint,
    "local": lambda options: Local(options.model),
}
"""Those that read any messages; a command adds the rule that knows its own."""


def make_teacher(name: str, options: TeacherOptions, rules: Mapping[str, Teacher] | None = None) -> Teacher:
    """The teacher of this name. Errors: `FlamingoError` for an unknown one, or one without a model."""
    rules = rules or {}
    check_choice("teacher", name, [*TEACHERS, *rules])
    if name in rules:
        return rules[name]
    if not options.model:
        raise FlamingoError(f"the {name} teacher needs model=NAME; expected the name of a language model")
    return TEACHERS[name](options)


def make_asker(teacher: Teacher, options: TeacherOptions, directory: Path) -> Asker:
    """`directory`: what is written; answers are kept in it where the options name no cache. A rule's need not be kept."""
    cache = None if isinstance(teacher, Rule) else AnswerCache(options.cache or directory / ".teacher")
    return Asker(teacher, cache, options.budget, options.concurrency, options.tries, options.pause)
