"""MMC4: every image goes before its own sentence, whatever is dropped on the way."""

import base64
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flamingo_lite.data.convert import mmc4
from flamingo_lite.data.convert.frame import Reject, Unit
from flamingo_lite.data.convert.selection import select
from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import FlamingoError
from tests.data.convert.conversions import convert, refused
from tests.data.convert.pages import mmc4_page, picture, with_images, write_lines, write_tar

PICTURES = [picture(i) for i in range(8)]
FOUR = ["Once.", "A cat sat.", "Twice.", "A dog ran."]


def converted(page: dict[str, Any], **options: Any) -> tuple[Document | None, list[Reject]]:
    """A page through reader and filters; its images are in it."""
    chosen = mmc4.Mmc4Options(**{"single_images": 1.0, **options})
    found: Document | None = None
    rejects: list[Reject] = []
    for record in mmc4.page(Unit(Path("a.tar"), "a.tar"), 0, json.dumps(page).encode(), chosen):
        for outcome in [record] if isinstance(record, Reject) else select(*record, mmc4.FORMAT, chosen, None):
            if isinstance(outcome, Reject):
                rejects.append(outcome)
            else:
                found = outcome[1]
    return found, rejects


def spoken(document: Document | None) -> list[str | bytes]:
    assert document is not None
    return [segment.data if isinstance(segment, Image) else segment.text for segment in document]


def test_images_stand_before_their_sentences_and_chunks_end_before_the_next_image() -> None:
    page = mmc4_page(FOUR, [[0, 0, 0, 0.5], [0, 0.4, 0, 0]])
    document, rejects = converted(with_images(page, {0: PICTURES[0], 1: PICTURES[1]}))
    assert document == Document(
        [
            Text("Once."),
            Image(PICTURES[1]),
            Text("A cat sat. Twice.", ends_chunk=True),
            Image(PICTURES[0]),
            Text("A dog ran.", ends_chunk=True),
        ],
        {
            "url": "http://example.org/page",
            "images": [
                {"name": "page_1.jpg", "url": "http://example.org/page/1.jpg", "similarity": 0.4},
                {"name": "page_0.jpg", "url": "http://example.org/page/0.jpg", "similarity": 0.5},
            ],
        },
    )
    assert rejects == []


def test_two_images_that_want_the_same_sentence_are_shared_out_for_the_greatest_sum() -> None:
    document, _ = converted(
        with_images(mmc4_page(["A.", "B."], [[0.5, 0.4], [0.6, 0.3]]), dict(enumerate(PICTURES[:2])))
    )
    assert spoken(document) == [PICTURES[1], "A.", PICTURES[0], "B."]


def test_images_beyond_the_number_of_sentences_go_to_the_most_similar_one() -> None:
    page = with_images(
        mmc4_page(["A.", "B."], [[0.5, 0.3], [0.3, 0.5], [0.25, 0.45]]), dict(enumerate(PICTURES[:3]))
    )
    assert spoken(converted(page)[0]) == [PICTURES[0], "A.", PICTURES[1], PICTURES[2], "B."]


def test_an_image_under_the_threshold_is_left_out_and_counted() -> None:
    page = with_images(mmc4_page(FOUR, [[0, 0, 0, 0.2399], [0, 0.24, 0, 0]]), dict(enumerate(PICTURES[:2])))
    document, rejects = converted(page)
    assert spoken(document) == ["Once.", PICTURES[1], "A cat sat. Twice. A dog ran."]
    assert [(reject.reason, reject.image) for reject in rejects] == [("similarity", True)]


@pytest.mark.parametrize(("size", "is_kept"), [(10_999, False), (11_000, True)])
def test_an_image_of_ten_kilobytes_is_left_out_before_the_others_are_assigned(
    size: int, is_kept: bool
) -> None:
    small = picture(9, (40, 40))
    comment = size - len(small) - 2
    padded = small[:2] + b"\xff\xfe" + comment.to_bytes(2, "big") + b"\0" * (comment - 2) + small[2:]
    assert len(padded) == size
    page = with_images(mmc4_page(["A.", "B."], [[0.9, 0.3], [0.8, 0.7]]), {0: padded, 1: PICTURES[1]})
    document, rejects = converted(page)
    assert spoken(document) == ([padded, "A.", PICTURES[1], "B."] if is_kept else [PICTURES[1], "A. B."])
    assert [reject.reason for reject in rejects] == ([] if is_kept else ["small_image"])


def test_the_first_images_of_the_text_stay_and_those_behind_go() -> None:
    sentences = [f"S{i}." for i in range(8)]
    similarity = np.fliplr(np.eye(8)) * 0.5
    document, rejects = converted(with_images(mmc4_page(sentences, similarity), dict(enumerate(PICTURES))))
    assert spoken(document) == [
        *(part for i in range(5) for part in (PICTURES[7 - i], f"S{i}.")), PICTURES[2], "S5. S6. S7."
    ]  # fmt: skip
    assert [reject.reason for reject in rejects] == ["images", "images"]
    assert document is not None and len(document.meta["images"]) == 6


def test_a_broken_image_is_left_out_makes_room_and_its_neighbours_are_joined() -> None:
    pictures = {0: PICTURES[0], 1: PICTURES[1][:12_000], 2: PICTURES[2]}
    page = with_images(mmc4_page(["A.", "B.", "C."], np.eye(3) * 0.5), pictures)
    document, rejects = converted(page, max_images=2)
    assert spoken(document) == [PICTURES[0], "A. B.", PICTURES[2], "C."]
    assert [reject.reason for reject in rejects] == ["image"]
    assert document is not None and [text.ends_chunk for text in document.texts] == [True, True]


def test_half_of_the_single_image_documents_stay_by_their_key() -> None:
    page = json.dumps(with_images(mmc4_page(["A."], [[0.5]]), {0: PICTURES[0]})).encode()
    options = mmc4.Mmc4Options()
    kept = []
    for number in range(200):
        [(key, document)] = mmc4.page(Unit(Path("a.tar"), "a.tar"), number, page, options)
        kept += [
            number
            for outcome in select(key, document, mmc4.FORMAT, options, None)
            if not isinstance(outcome, Reject)
        ]
    assert 70 < len(kept) < 130


def test_a_page_without_images_left_is_rejected() -> None:
    document, rejects = converted(mmc4_page(FOUR, [[0.5, 0, 0, 0]]))
    assert document is None
    assert [(reject.reason, reject.image) for reject in rejects] == [("missing", True), ("images", False)]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"text_list": None}, "text_list is a NoneType, not a list"),
        ({"texts": []}, "texts is unknown"),
        ({"similarity_matrix": [[0.1]]}, "similarity_matrix is 1 x 1; expected 1 images x 4 sentences"),
        ({"similarity_matrix": [[0.1], [1, 2]]}, "rows that are not numbers of one length"),
        ({"similarity_matrix": [["0.5"] * 4]}, "not numbers"),
        ({"similarity_matrix": [[None] * 4]}, "not numbers"),
        ({"similarity_matrix": [[10**400] * 4]}, "not numbers"),
        ({"image_info": []}, "similarity_matrix is 1 x 4; expected 0 images"),
        ({"text_list": ["a", "b", "c", 4]}, "something else than text"),
        ({"image_info": [{"raw_url": "x"}]}, "image 0: image_name is missing"),
        ({"image_info": [{"image_name": "x.jpg", "clip_score": 1}]}, "image 0: clip_score is unknown"),
    ],
)
def test_fields_that_are_wrong_are_named(change: dict[str, Any], named: str) -> None:
    document, rejects = converted({**mmc4_page(FOUR, [[0.5, 0, 0, 0]]), **change})
    assert document is None
    assert [reject.reason for reject in rejects] == ["layout"] and named in rejects[0].message


def test_a_page_without_its_fields_names_them_all() -> None:
    _, rejects = converted({"url": "x"})
    for name in ("text_list", "similarity_matrix", "image_info"):
        assert f"{name} is missing" in rejects[0].message


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_a_similarity_that_is_no_finite_number_is_refused(number: str) -> None:
    text = json.dumps(mmc4_page(["A."], [[0.5]])).replace("0.5", number)
    [reject] = mmc4.page(Unit(Path("a.tar"), "a.tar"), 0, text.encode(), mmc4.Mmc4Options())
    assert isinstance(reject, Reject) and reject.reason == "json"


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_whatever_a_field_holds_the_page_is_a_document_or_a_reject(data: st.DataObject) -> None:
    page = with_images(mmc4_page(FOUR, [[0, 0, 0, 0.5], [0, 0.4, 0, 0]]), dict(enumerate(PICTURES[:2])))
    place = data.draw(st.sampled_from([page, page["image_info"][0]]))
    place[data.draw(st.sampled_from(sorted(place)))] = data.draw(json_values)
    document, rejects = converted(page)
    assert document is not None or rejects[-1].reason in ("layout", "text", "images", "marks")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_every_image_stands_before_its_own_sentence(data: st.DataObject) -> None:
    """The truth is built in: sentence s belongs to image i of `own`, which is closer to it than to any other, and no
    assignment that leaves it can have a greater sum; images that are dropped must not shift the others."""
    sentences = data.draw(st.integers(1, 9))
    images = data.draw(st.integers(1, 8))
    own = data.draw(st.permutations(range(max(sentences, images))))[:images]
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    similarity = random.uniform(-0.2, 0.23, (images, sentences))
    placed = {i: s for i, s in enumerate(own) if s < sentences}
    for image, sentence in placed.items():
        similarity[image, sentence] = random.uniform(0.8, 0.9)
    missing = data.draw(st.sets(st.sampled_from(range(images))))
    page = mmc4_page([f"S{i}." for i in range(sentences)], similarity)
    document, _ = converted(with_images(page, {i: PICTURES[i] for i in range(images) if i not in missing}))
    expected: list[tuple[bytes, str]] = sorted(
        ((PICTURES[i], f"S{s}.") for i, s in placed.items() if i not in missing),
        key=lambda pair: int(pair[1][1:-1]),
    )[:6]
    found = []
    if document is not None:
        found = [
            (segment.data, str(following.text).split()[0])
            for segment, following in zip(document, document[1:], strict=False)
            if isinstance(segment, Image) and isinstance(following, Text)
        ]
        assert len(document.images) == len(found)
        assert " ".join(text.text for text in document.texts) == " ".join(page["text_list"])
    assert found == expected


def lines_and_images(folder: Path, below: str = "") -> Path:
    pages = [mmc4_page(FOUR, [[0, 0, 0, 0.5], [0, 0.4, 0, 0]], f"p{i}") for i in range(3)]
    images = folder / "images" / below
    images.mkdir(parents=True)
    for i in range(3):
        for j in range(2):
            (images / f"p{i}_{j}.jpg").write_bytes(PICTURES[2 * i + j])
    return write_lines(folder / "docs_no_face_shard_0_v3.jsonl", pages)


@pytest.mark.parametrize("below", ["", "docs_no_face_shard_0_v3_images", "docs_no_face_shard_0_v3"])
def test_lines_and_a_folder_of_images_are_read(below: str, tmp_path: Path) -> None:
    found = convert(
        tmp_path / "to", "mmc4", lines_and_images(tmp_path, below), "--images", tmp_path / "images"
    )
    assert found.keys == [f"docs_no_face_shard_0_v3-{i:08d}" for i in range(3)]
    assert [len(document.images) for document in found.documents] == [2, 2, 2]
    assert found.documents[2].images == (Image(PICTURES[5]), Image(PICTURES[4]))


def test_zipped_lines_are_the_same(tmp_path: Path) -> None:
    plain = lines_and_images(tmp_path)
    with zipfile.ZipFile(tmp_path / f"{plain.name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(plain, plain.name)
    words = ["--images", tmp_path / "images"]
    unzipped = convert(tmp_path / "a", "mmc4", plain, *words)
    assert convert(tmp_path / "b", "mmc4", tmp_path / f"{plain.name}.zip", *words) == unzipped


def test_open_flamingos_tars_are_read_even_with_base64_as_python_prints_it(tmp_path: Path) -> None:
    page = mmc4_page(FOUR, [[0, 0, 0, 0.5], [0, 0.4, 0, 0]])
    plain = with_images(page, dict(enumerate(PICTURES[:2])))
    printed = with_images(page, dict(enumerate(PICTURES[:2])))
    for info, data in zip(printed["image_info"], PICTURES, strict=False):
        info["image_base64"] = str(base64.b64encode(data))
    members = {"a1.json": json.dumps(plain).encode(), "b2.json": json.dumps(printed).encode()}
    found = convert(tmp_path / "to", "mmc4", write_tar(tmp_path / "0.tar", members))
    assert len(found.documents) == 2 and found.documents[0] == found.documents[1]
    assert found.documents[0].images == (Image(PICTURES[1]), Image(PICTURES[0]))


def test_a_truncated_tar_costs_its_tail_and_says_so(tmp_path: Path) -> None:
    page = with_images(mmc4_page(FOUR, [[0, 0, 0, 0.5], [0, 0.4, 0, 0]]), dict(enumerate(PICTURES[:2])))
    path = write_tar(tmp_path / "0.tar", {f"{i}.json": json.dumps(page).encode() for i in range(3)})
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    found = convert(tmp_path / "to", "mmc4", path)
    assert len(found.documents) == 1 and found.reasons == ["truncated"]


def test_a_file_of_another_kind_is_refused_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_lines(tmp_path / "llava.jsonl", [{"id": "1", "conversations": []}])
    shown = refused(capsys, tmp_path / "to", "mmc4", path)
    assert (
        "not mmc4: llava.jsonl: record 0: text_list is missing" in shown
        and "conversations is unknown" in shown
    )


def test_lines_without_a_folder_of_images_say_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--images FOLDER" in refused(capsys, tmp_path / "to", "mmc4", lines_and_images(tmp_path))


def test_a_threshold_in_percent_is_refused() -> None:
    with pytest.raises(FlamingoError, match="min_similarity is 30"):
        mmc4.Mmc4Options(min_similarity=30)
