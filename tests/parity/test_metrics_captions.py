"""CIDEr-D, BLEU and ROUGE-L against pycocoevalcap, the tokenizer against its Java program, ROUGE-L against rouge-score."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from rouge_score.rouge_scorer import RougeScorer

from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.metrics import ptb
from flamingo_lite.evaluation.metrics.captions import bleu, cider_d, document_frequency, rouge_l
from flamingo_lite.evaluation.metrics.ptb import tokenize_captions
from flamingo_lite.evaluation.metrics.rouge import rouge_l_f1
from tests.parity.metric_references import ANSWERS

WORDS = [
    "a", "the", "man", "woman", "dog", "cat", "horse", "riding", "sitting", "on", "in", "with", "red", "table", "street",
    "two", "of", "small",
]  # fmt: skip


def corpus(images: int, seed: int) -> tuple[list[str], list[list[str]]]:
    """Candidates and one to six references each, some near the candidate, some empty, some long."""
    generator = random.Random(seed)

    def sentence() -> list[str]:
        return generator.choices(WORDS, k=generator.choice([0, 1, 2, 3, 8, 9, 10, 11, 12, 30]))

    candidates, references = [], []
    for _ in range(images):
        words = sentence()
        near = [" ".join(w if generator.random() < 0.8 else generator.choice(WORDS) for w in words)]
        references.append(near + [" ".join(sentence()) for _ in range(generator.randrange(6))])
        candidates.append(" ".join(words))
    return candidates, references


CORPORA = [corpus(60, seed) for seed in range(3)]
UGLY = (
    [" ".join(answer.split()) for answer in ANSWERS],
    [
        [" ".join(a.split()), " ".join(b.split())]
        for a, b in zip(ANSWERS[1:] + ANSWERS[:1], ANSWERS, strict=True)
    ],
)


def theirs(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[dict, dict]:
    return dict(enumerate(map(list, references))), {i: [c] for i, c in enumerate(candidates)}


@pytest.mark.parametrize("candidates, references", [*CORPORA, UGLY], ids=["0", "1", "2", "ugly"])
def test_cider_d_is_theirs_to_the_last_digit(candidates: list[str], references: list[list[str]]) -> None:
    mean, scores = Cider().compute_score(*theirs(candidates, references))
    found = cider_d(candidates, references)
    assert found == scores.tolist()
    assert np.mean(found) == mean


@pytest.mark.parametrize("candidates, references", [*CORPORA, UGLY], ids=["0", "1", "2", "ugly"])
def test_bleu_is_theirs_to_the_last_digit(candidates: list[str], references: list[list[str]]) -> None:
    corpus_scores, sentence_scores = Bleu(4).compute_score(*theirs(candidates, references), verbose=0)
    found = bleu(candidates, references)
    assert found.corpus == tuple(corpus_scores)
    assert found.sentences == list(zip(*sentence_scores, strict=True))


@pytest.mark.parametrize("candidates, references", [*CORPORA, UGLY], ids=["0", "1", "2", "ugly"])
def test_rouge_l_is_theirs_to_the_last_digit(candidates: list[str], references: list[list[str]]) -> None:
    _, scores = Rouge().compute_score(*theirs(candidates, references))
    assert [rouge_l(c, r) for c, r in zip(candidates, references, strict=True)] == scores.tolist()


def test_frozen_weights_make_a_subset_score_as_in_the_whole() -> None:
    candidates, references = CORPORA[0]
    whole = cider_d(candidates, references)
    frequency = document_frequency(references)
    assert cider_d(candidates[:7], references[:7], frequency) == whole[:7]
    assert cider_d(candidates[:7], references[:7]) != whole[:7]


def test_the_f1_of_rouge_l_is_that_of_rouge_score() -> None:
    scorer = RougeScorer(["rougeL"])
    pairs = [
        *zip(*CORPORA[0], strict=True),
        *((a, [b]) for a, b in zip(ANSWERS, ANSWERS[3:] + ANSWERS[:3], strict=True)),
    ]
    pairs += [(answer, ["The answer is 3 apples.", answer]) for answer in ANSWERS]
    assert len(pairs) >= 50
    for text, references in pairs:
        assert rouge_l_f1(text, references) == scorer.score_multi(references, text)["rougeL"].fmeasure


# What Java's PTBTokenizer of CoreNLP 3.4.1 makes of each, punctuation dropped.
TOKENS = {
    "A man don't ride (a) horse, and isn't 'happy'.": "a man do n't ride -lrb- a -rrb- horse and is n't happy",
    "Two dogs cannot play at 3:30 p.m. in the U.S.": "two dogs can not play at 3:30 p.m. in the u.s.",
    "": "",
    " ": "",
    ".": "",
    "a t-shirt's red/white stripes... 50% off -- $5!": "a t-shirt 's red/white stripes 50 % off $ 5",
    "Mr. Smith's 1,000 \xe9clairs & caf\xe9": "mr. smith 's 1,000 \xe9clairs & caf\xe9",
    "the boys' toys": "the boys toys",
    'it\'s gonna rain; "wow"': "it 's gon na rain wow",
    "a 2-door car, 1960s": "a 2-door car 1960s",
    "a\nb": "a b",
    "a\r\nb": "a b",
    "O'Brien said I've": "o'brien said i 've",
    "Dogs' n cats @ home #1": "dogs n cats @ home # 1",
    "3/4 of a pizza": "3/4 of a pizza",
    'a stop sign that says "STOP".': "a stop sign that says stop",
    "a woman, dressed in 'black', sits.": "a woman dressed in black sits",
    "St. Louis St.": "st. louis st.",
    "5'10\" man": "5 10 man",
    "won't can't shan't": "wo n't ca n't sha n't",
    "Coca-Cola ad": "coca-cola ad",
    "hello_world www.foo.com": "hello_world www.foo.com",
    "\u2019s it\u2019s don\u2019t": "'s it 's do n't",
    "1st 2nd 20th": "1st 2nd 20th",
    "no.": "no",
    "at 5 o'clock": "at 5 o'clock",
    "ain't": "ai n't",
    "a cat.The dog": "a cat.the dog",
    "a   b\t c ": "a b c",
    " 2 dogs": "2 dogs",
    "I'm": "i 'm",
    "a.b": "a.b",
    "caf\u00e9-bar": "caf\u00e9-bar",
    "\u0663 dogs": "\u0663 dogs",
    "\u4e00\u53ea\u72d7": "\u4e00\u53ea\u72d7",
    "-3 degrees": "-3 degrees",
    "yes": "yes",
    "No, it is not.": "no it is not",
    "I cannot answer that.": "i can not answer that",
    "I'm sorry, but I can't help with that.": "i 'm sorry but i ca n't help with that",
    "N/A": "n/a",
    "[red]": "-lsb- red -rsb-",
    "{a}": "-lcb- a -rcb-",
    "what?!": "what ?!",
    "a;b": "a b",
    "a: b": "a b",
    "\u201cquoted\u201d text": "quoted text",
    "an old-fashioned, hand-made chair": "an old-fashioned hand-made chair",
    "the dog's owner's hat": "the dog 's owner 's hat",
    "they'd've gone": "they 'd 've gone",
    "two (2) cats": "two -lrb- 2 -rrb- cats",
    "J. Smith rides": "j. smith rides",
    "A red, white, and blue flag.": "a red white and blue flag",
    "a\u2028b": "a b",
    "Person wearing size 9 shoes": "person wearing size 9 shoes",
    "50 people": "50 people",
}


def test_without_java_ordinary_captions_have_the_published_tokens() -> None:
    assert len(TOKENS) >= 50
    found = tokenize_captions(list(TOKENS), "python")
    assert found == ptb.TokenizedCaptions(list(TOKENS.values()), "python")


@pytest.mark.skipif(shutil.which("java") is None, reason="no Java runtime")
def test_with_java_captions_have_the_published_tokens() -> None:
    assert tokenize_captions(list(TOKENS), "java") == ptb.TokenizedCaptions(list(TOKENS.values()), "java")


def test_java_is_taken_where_it_is_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tokenize_captions(["A dog."]).tokenizer == ("java" if shutil.which("java") else "python")
    monkeypatch.setenv("PATH", "")
    assert tokenize_captions(["A dog."]) == ptb.TokenizedCaptions(["a dog"], "python")
    with pytest.raises(FlamingoError, match="java is not on the PATH; install it, or choose"):
        tokenize_captions(["A dog."], "java")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=30), max_size=4))
def test_every_caption_gives_one_line_of_tokens(captions: list[str]) -> None:
    found = tokenize_captions(captions, "python").captions
    assert len(found) == len(captions)
    assert all(line == " ".join(line.split()) for line in found)
