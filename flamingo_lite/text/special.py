"""The single tokens of a tokenizer that are written out in text, `</s>` or `<|im_end|>`, and words cut up at them."""

import re
from collections.abc import Iterator
from typing import NamedTuple
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase


class SpecialTokens(NamedTuple):
    """Of a tokenizer while it has `size` tokens. `control`: those of `names` that are no words. `pattern`: a token, with
    the blanks that it takes with it."""

    size: int
    names: frozenset[str]
    control: frozenset[str]
    pattern: re.Pattern[str]

    def split(self, words: str) -> Iterator[tuple[str, bool]]:
        """The words in order; is each a token?"""
        end = 0
        for found in self.pattern.finditer(words):
            if found.start() > end:
                yield words[end : found.start()], False
            yield next(group for group in found.groups() if group is not None), True
            end = found.end()
        if words[end:]:
            yield words[end:], False

    def first(self, words: str) -> str | None:
        """The first token that the words hold."""
        return next((part for part, is_token in self.split(words) if is_token), None)


_KNOWN: WeakKeyDictionary[PreTrainedTokenizerBase, SpecialTokens] = WeakKeyDictionary()


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> SpecialTokens:
    """What the tokenizer takes for single tokens when it meets them in a text."""
    found = _KNOWN.get(tokenizer)
    if found is None or found.size != len(tokenizer):
        added = sorted(tokenizer.added_tokens_decoder.values(), key=lambda token: -len(token.content))
        choices = [
            ("\\s*" if t.lstrip else "") + f"({re.escape(t.content)})" + ("\\s*" if t.rstrip else "")
            for t in added
        ]
        pattern = re.compile("|".join(choices) or r"(?!)")
        names = frozenset(token.content for token in added)
        control = frozenset(token.content for token in added if token.special)
        found = _KNOWN[tokenizer] = SpecialTokens(len(tokenizer), names, control, pattern)
    return found
