"""What tasks of captions share: CIDEr-D as the score of an answer, relative to all references of the cell.

Captions are tokenized by the regular expression of `metrics/ptb.py`, whatever is installed: the same answers are to
give the same bytes everywhere. Its documented differences from Java's tokenizer hold for the figures.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from flamingo_lite.evaluation.demonstrations import Example
from flamingo_lite.evaluation.metrics import Scored
from flamingo_lite.evaluation.metrics.captions import bleu, cider_d, document_frequency
from flamingo_lite.evaluation.metrics.ptb import tokenize_captions
from flamingo_lite.evaluation.tasks.task import Answer, Style, first_line

Figures = Callable[[Sequence[Answer]], Mapping[str, float | None]]


def caption_style(max_new_tokens: int = 20, figures: Figures | None = None) -> Style:
    """`figures`: in addition to BLEU-1 and BLEU-4."""

    def every(answers: Sequence[Answer]) -> Mapping[str, float | None]:
        return {**bleu_figures(answers), **(figures(answers) if figures else {})}

    return Style(
        score=_caption,
        metric="cider_d",
        bounds=(0.0, 10.0),
        max_new_tokens=max_new_tokens,
        together=cider_scores,
        figures=every,
    )


def cider_scores(texts: Sequence[str], examples: Sequence[Example]) -> list[float]:
    """CIDEr-D of each text. The weights come from each image's references once, however many seeds ask about it."""
    references = {example.id: _tokens(example.right_answers) for example in examples}
    frequency = document_frequency(list(references.values()))
    said = zip(_tokens([first_line(text) or "" for text in texts]), examples, strict=True)
    asked = [(text, example.id) for text, example in said]
    distinct = list(dict.fromkeys(asked))
    scores = cider_d([text for text, _ in distinct], [references[of] for _, of in distinct], frequency)
    found = dict(zip(distinct, scores, strict=True))
    return [found[of] for of in asked]


def bleu_figures(answers: Sequence[Answer]) -> Mapping[str, float | None]:
    if not answers:
        return {"bleu_1": None, "bleu_4": None}
    texts = _tokens([first_line(of.raw) or "" for of in answers])
    corpus = bleu(texts, [_tokens(of.example.right_answers) for of in answers]).corpus
    return {"bleu_1": corpus[0], "bleu_4": corpus[3]}


def _caption(text: str, example: Example) -> Scored:
    """Only what was found: its score depends on the whole cell."""
    caption = first_line(text)
    return Scored(caption, 0.0, "unparsed" if caption is None else "ok")


def _tokens(captions: Sequence[str]) -> list[str]:
    return [_tokenized(caption) for caption in captions]


@lru_cache(maxsize=65536)
def _tokenized(caption: str) -> str:
    (tokens,) = tokenize_captions([caption], "python").captions
    return tokens
