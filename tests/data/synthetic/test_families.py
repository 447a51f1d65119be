"""The synthetic families: seeds decide everything, twins agree, and what is held out is never drawn."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_lite.data.synthetic import canvas, operators, reading
from flamingo_lite.data.synthetic.families import FAMILIES
from flamingo_lite.data.synthetic.naming import naming
from flamingo_lite.data.synthetic.picture import in_words
from flamingo_lite.data.synthetic.text_twins import KINDS
from flamingo_lite.document import Document, Image, Text

names = st.sampled_from(sorted(FAMILIES))
seeds = st.integers(0, 2**32)


@settings(max_examples=40, deadline=None)
@given(names, seeds)
def test_a_seed_decides_every_byte(name, seed):
    first, second = (FAMILIES[name](random.Random(seed)) for _ in range(2))
    assert list(first) == list(second)
    assert [image.data for image in first.images] == [image.data for image in second.images]


@settings(max_examples=60, deadline=None)
@given(names, seeds)
def test_the_twin_in_words_is_the_document_with_its_pictures_in_words(name, seed):
    drawn = FAMILIES[name](random.Random(seed))
    assert list(drawn.text_twin()) == list(FAMILIES[name](random.Random(seed), in_words))


@settings(max_examples=30, deadline=None)
@given(names, seeds)
def test_pictures_decode_at_their_size(name, seed):
    for image in FAMILIES[name](random.Random(seed)).images:
        assert image.pil().size == (canvas.WIDTH, canvas.HEIGHT)


def test_the_held_out_pairs_are_twenty_and_hold_every_digit_twice_on_each_side():
    held_out = operators.pairs(held_out=True)
    assert len(set(held_out)) == 20
    assert set(held_out).isdisjoint(operators.pairs(held_out=False))
    assert len(operators.pairs(held_out=False)) == 80
    for side in (0, 1):
        assert set(Counter(pair[side] for pair in held_out).values()) == {2}


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([name for name in sorted(FAMILIES) if name not in ("scenes", "naming")]), seeds)
def test_no_picture_of_any_family_shows_a_held_out_pair(name, seed):
    document = FAMILIES[name](random.Random(seed), in_words)
    texts = [segment for segment in document if isinstance(segment, Text)]
    shown = [text.text[1:-1] for text in texts if text.text.startswith("[")]
    assert not any(reading.shows_held_out_pair(words) for words in shown)
    if name == "operator_induction_interleaved":
        operands = [int(words) for words in shown]
        examples = set(zip(operands[::2], operands[1::2], strict=True))
        assert examples.isdisjoint(operators.pairs(held_out=True))


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("3 ? 6", True),
        ("36", True),
        ("3 6", True),
        ("1 3 ? 6", True),
        ("1 3 6", False),
        ("3", False),
        ("3 ? 4", False),
    ],
)
def test_a_held_out_pair_is_seen_alone_or_around_a_question_mark(words, shown):
    assert (3, 6) in operators.pairs(held_out=True)
    assert reading.shows_held_out_pair(words) == shown


@pytest.mark.parametrize("rule", operators.TRAINED_RULES)
def test_examples_are_drawn_label_first(rule):
    generator = random.Random(0)
    trained = operators.pairs(held_out=False)
    answers = Counter()
    for _ in range(5000):
        a, b = operators.draw_operands(generator, rule, trained)
        assert (a, b) in trained
        answers[operators.RULES[rule](a, b)] += 1
    assert set(answers) == set(range(10))
    assert max(answers.values()) < 1.25 * min(answers.values())


@settings(max_examples=100, deadline=None)
@given(seeds)
def test_episodes_with_pictures_follow_one_trained_rule(seed):
    document = operators.operator_induction(random.Random(seed), in_words)
    rule = operators.RULES[document.meta["rule"]]
    assert document.meta["rule"] in operators.TRAINED_RULES
    text = "".join(t.text + ("\n" if t.ends_chunk else "") for t in document.texts)
    for line in text.splitlines():
        a, b = (int(x) for x in line[1 : line.index("]")].split(" ? "))
        assert int(line.split("=")[-1]) == rule(a, b)


def lines(document: Document) -> list[tuple[operators.Pair, int]]:
    """The operands and the answer of each example in words, in order."""
    text = "".join(t.text + ("\n" if t.ends_chunk else "") for t in document.texts)
    return [
        (tuple(int(x) for x in line[1 : line.index("]")].split(" ? ")), int(line.split("=")[-1]))
        for line in text.splitlines()
    ]


@settings(max_examples=100, deadline=None)
@given(seeds)
def test_scrambled_examples_keep_their_answers_together_and_only_queries_are_trained_on(seed):
    document = operators.operator_induction_scrambled(random.Random(seed), in_words)
    shown = lines(document)
    examples, queries = shown[: -operators.SCRAMBLED_QUERIES], shown[-operators.SCRAMBLED_QUERIES :]
    rule = operators.RULES[document.meta["rule"]]
    assert sorted(answer for _, answer in examples) == sorted(rule(*pair) for pair, _ in examples)
    for pair, answer in queries:
        assert answer in {operators.RULES[name](*pair) for name in operators.TRAINED_RULES}
    trained = [text.loss for text in document.texts if text.ends_chunk]
    assert trained == [False] * len(examples) + [True] * len(queries)


@settings(max_examples=100, deadline=None)
@given(seeds)
def test_rule_induction_shows_rules_that_are_no_operator_and_never_the_one_held_out(seed):
    document = operators.rule_induction(random.Random(seed), in_words)
    assert document.meta["rule"] in ("smaller", "first", "second")
    rule = operators.RULES[document.meta["rule"]]
    assert all(rule(*pair) == answer for pair, answer in lines(document))


def test_the_styles_differ_only_in_reading_the_expression_out():
    shown = Text("[3 ? 4]", loss=False)
    assert operators.item(shown, 3, 4, 7, "direct")[1:] == (
        Text(" =", loss=False),
        Text(" 7", ends_chunk=True),
    )
    assert operators.item(shown, 3, 4, 7, "spelled")[1:] == (Text(" 3 ? 4 = 7", ends_chunk=True),)
    assert operators.prompt(shown, "direct") == (shown, Text(" ="))
    assert operators.prompt(shown, "spelled") == (shown,)


def test_sources_keep_fonts_and_scans_apart():
    assert canvas.HELD_OUT_FONT not in canvas.TRAINING_FONTS
    training, held_out = (
        {scan.tobytes() for digit in canvas._scans()[part] for scan in digit} for part in (False, True)
    )
    assert training.isdisjoint(held_out)
    assert len(held_out) == pytest.approx(1797 / 5, abs=2)


def test_the_source_changes_the_picture_and_not_its_words():
    drawn = {
        source: operators.draw_image(3, 4, random.Random(5), source)
        for source in ("train", "test", "handwritten")
    }
    assert len({image.id for image in drawn.values()}) == 3
    assert {image.words for image in drawn.values()} == {"3 ? 4"}


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_a_name_is_trained_on_only_once_it_has_been_given(seed):
    document = naming(random.Random(seed))
    given_names: dict[str, str] = {}
    for image, name in zip(document.images, [t for t in document.texts if t.ends_chunk], strict=True):
        assert isinstance(image, Image)
        assert name.loss == (name.text in given_names.values())
        given_names[image.id] = name.text


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(KINDS)), seeds, st.integers(1, 8))
def test_text_documents_hold_no_pictures_and_something_to_learn(kind, seed, size):
    document = KINDS[kind](random.Random(seed), size)
    assert not document.images
    assert any(text.loss for text in document.texts)
