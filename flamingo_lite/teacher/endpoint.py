"""A teacher behind an OpenAI-compatible endpoint: the cloud's, or a server's of one's own (vLLM, Ollama, llama.cpp)."""

import base64
import email.utils
import functools
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from flamingo_lite.errors import FlamingoError, SampleError, first_line
from flamingo_lite.teacher.messages import Answer, Message, Picture, Sampling, TryAgain, most_tokens

TRY_AGAIN = (408, 409, 425, 429)
"""Statuses of a request that may be answered later, like all from 500 on."""
STOP = (401, 403, 404)
"""Statuses that every other request would get too."""


class Endpoint:
    """The model `name` at `base_url` ("": OpenAI's). `key_variable`: the environment variable that holds the key; it is
    read here and kept nowhere else. `limit_field`: what the server calls the limit of an answer's tokens.

    Errors: `FlamingoError` without the openai package, or without a key for OpenAI's own endpoint.
    """

    def __init__(
        self,
        name: str,
        base_url: str = "",
        key_variable: str = "OPENAI_API_KEY",
        timeout: float = 120.0,
        limit_field: str = "max_tokens",
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise FlamingoError(
                "the endpoint teacher needs the openai package; install flamingo_lite[teacher]"
            ) from error
        self.name = name
        self.where = base_url or "OpenAI's endpoint"
        self._key = os.environ.get(key_variable, "").strip()
        self._limit_field = limit_field
        self._openai = openai
        if not self._key and not base_url:
            raise FlamingoError(
                f"the environment has no {key_variable}; expected the endpoint's key there, "
                "or base_url=URL of a server that needs none"
            )
        if not (self._key.isascii() and self._key.isprintable()):
            raise FlamingoError(
                f"{key_variable} in the environment is no key; expected plain ASCII characters"
            )
        # Our own retries: the client's would be counted nowhere, and it does not repeat what cannot be parsed.
        self._client = openai.OpenAI(
            api_key=self._key or "none", base_url=base_url or None, timeout=timeout, max_retries=0
        )

    def answer(self, messages: Sequence[Message], sampling: Sampling) -> Answer:
        """One request. Errors: as `Teacher.answer`, with the server's own words, in which the key is blacked out."""
        asked = [{"role": message.role, "content": content_of(message)} for message in messages]
        options = {name: value for name, value in asdict(sampling).items() if value is not None}
        options[self._limit_field] = options.pop("max_tokens")
        create: Any = self._client.chat.completions.with_raw_response.create
        try:
            body = create(model=self.name, messages=asked, **options).content
        except self._openai.APIStatusError as error:
            raise self._refusal(error) from error
        except self._openai.APITimeoutError as error:
            raise TryAgain(
                f"{self.where} did not answer in time", "unanswered", may_have_cost=True
            ) from error
        except self._openai.APIConnectionError as error:
            cause = first_line(error.__cause__ or error)
            raise TryAgain(
                f"{self.where} cannot be reached, or broke off ({self._blacked_out(cause)})",
                "unanswered",
                may_have_cost=True,
            ) from error
        try:
            return _read(body, functools.partial(most_tokens, messages, sampling))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise TryAgain(
                f"{self.where} sent what is no chat completion ({self._blacked_out(first_line(error))})",
                "garbled",
                may_have_cost=True,
            ) from error

    def _refusal(self, error: Any) -> FlamingoError:
        status = error.status_code
        said = self._blacked_out(first_line(error))
        if status in TRY_AGAIN or status >= 500:
            after = retry_after(error.response.headers)
            asks = f", and asks for {after:,.0f} s of rest" if after else ""
            return TryAgain(f"{self.where} says {status}{asks}: {said}", "unanswered", after)
        if status in STOP:
            return FlamingoError(
                f"{self.where} says {status} of model {self.name!r}: {said}; check base_url, model and key"
            )
        return SampleError(f"{self.where} says {status}: {said}", "refused")

    def _blacked_out(self, said: str) -> str:
        return (said.replace(self._key, "***") if self._key else said)[:300]


def content_of(message: Message) -> str | list[dict[str, Any]]:
    """As the endpoint takes it; pictures travel inside the request."""
    if not message.parts:
        return message.text
    return [
        {"type": "text", "text": part} if isinstance(part, str) else _picture(part) for part in message.parts
    ]


def _picture(part: Picture) -> dict[str, Any]:
    data = base64.b64encode(part.data).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:{part.mime};base64,{data}"}}


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds from now that the header Retry-After asks for, as a number or a date (RFC 9110, 10.2.3)."""
    if (value := headers.get("retry-after")) is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _read(body: bytes, most: "functools.partial[int]") -> Answer:
    """The answer in a chat completion. Errors: `ValueError`, `LookupError`, `TypeError` or `AttributeError` for anything
    that is none. A server that does not say what an answer cost is taken to have charged the most that it can."""
    completion = json.loads(body)
    choice = completion["choices"][0]
    text = choice["message"]["content"]
    if not isinstance(text, str):
        raise ValueError(f"the content is a {type(text).__name__}, not a text")
    text.encode()  # half of a surrogate pair is no text either
    usage = completion.get("usage")
    prompt, answer = (_count(usage, name) for name in ("prompt_tokens", "completion_tokens"))
    if prompt is None or answer is None:
        prompt, answer = most(), 0
    return Answer(text, prompt, answer, is_cut=choice.get("finish_reason") == "length")


def _count(usage: Any, name: str) -> int | None:
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if type(count) is int and count >= 0 else None
