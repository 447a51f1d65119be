"""From shards with planted examples to the list, to an evaluation that leaves them out, to the page that says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flamingo_lite import cli
from flamingo_lite.data.shards import Shards, write_shards
from flamingo_lite.document import Document, Image
from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.answers import Generate
from flamingo_lite.evaluation.contamination import contamination_of, examples_of, find_contamination
from flamingo_lite.evaluation.exclusion import excluded, exclusion_lines
from flamingo_lite.evaluation.gallery import redrawn
from flamingo_lite.evaluation.grid import EvaluationConfig
from flamingo_lite.evaluation.report import write_report
from flamingo_lite.evaluation.results import load_samples
from flamingo_lite.evaluation.runner import evaluate, identity_of
from flamingo_lite.evaluation.tasks import items_of
from tests.evaluation.file_tasks import make_files, write_json

TASK = "operator_induction"
QUERIES = 5
LONG = "which of the two small birds on the left branch of the tree is blue"


def asked(**changes: Any) -> EvaluationConfig:
    values: dict[str, Any] = {
        "queries": QUERIES, "shots": [0, 2], "seeds": [0, 1], "splits": ["test"], "styles": ["direct"],
        "conditions": ["standard"], "resamples": 10,
    }  # fmt: skip
    return EvaluationConfig(**{**values, **changes})


def planted() -> tuple[str, str]:
    """The ids of a query and of an example of the support that are in the shards."""
    items = items_of(TASK)
    return items.query("test", 1).id, items.support("test", 0).examples[3].id


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    items = items_of(TASK)
    query, shown = items.query("test", 1), items.support("test", 0).examples[3]
    documents = [
        ("clean", Document(["nothing of it"])),
        ("query", Document(["see", Image(query.images[0].data), "= 3"])),
        ("both", Document([Image(shown.images[0].data), Image(query.images[0].data)])),
        ("broken", Document([Image(query.images[0].data[:-20])])),
    ]
    directory = tmp_path_factory.mktemp("contaminated") / "shards"
    write_shards(documents, directory, samples_per_shard=2)
    return directory


@pytest.fixture(scope="module")
def listed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("listed")
    words = [f"data.directory={shards}", f"output={output}", f"eval.tasks=[{TASK}]", "eval.splits=[test]"]
    quick = [f"eval.queries={QUERIES}", "eval.styles=[direct]"]
    assert cli.main(["eval", "contamination", *words, *quick, "--workers", "1", "--distance", "0"]) == 0
    return output / "contamination.json"


def test_planted_examples_are_named_with_where_they_were_met(listed: Path, shards: Path) -> None:
    found = json.loads(listed.read_text())
    exact = {(e["role"], e["id"]): e["why"]["exact"] for e in found["found"] if "exact" in e["why"]}
    query, shown = planted()
    assert set(exact) == {("query", query), ("support", shown)}
    assert exact["query", query] == {
        "where": f"{shards}/shard-000000.tar/query", "documents": 2, "detail": None,
    }  # fmt: skip
    counts = {entry["role"]: entry for entry in found["tasks"]}
    assert counts["query"]["n"] == QUERIES and counts["query"]["n_exact"] == 1
    assert counts["query"]["n_short"] == QUERIES  # an image asks, not the text
    assert found["documents"] == 3 and found["rejects"] == {"image": 1}


def test_texts_of_a_task_from_files_are_looked_for_and_damaged_images_named(tmp_path: Path) -> None:
    files = make_files("ok_vqa", tmp_path)
    questions = json.loads(Path(files["questions"]).read_text())
    questions["questions"][2]["question"] = LONG
    write_json(Path(files["questions"]), questions)
    write_shards([("quoted", Document([f"Somebody asked: {LONG}?"]))], tmp_path / "shards")
    sorted(Path(files["images"]).iterdir())[0].write_bytes(b"nothing")
    style = ["openflamingo"]
    config = asked(tasks=["ok_vqa"], files={"ok_vqa": files}, styles=style, control_styles=style)
    named, sets = examples_of(config), [Shards(tmp_path / "shards")]
    (*_, (_, met)) = find_contamination(named, sets, distance=0, workers=1)
    content = contamination_of(named, met, sets, 0)
    (found,) = content["found"]
    assert (found["role"], found["id"]) == ("query", "2") and list(found["why"]) == ["text"]
    assert content["unreadable"] and all("not an image" in each["why"] for each in content["unreadable"])


@pytest.mark.slow
def test_two_processes_find_the_same(shards: Path) -> None:
    named, sets = examples_of(asked()), [Shards(shards)]
    found = []
    for workers in (1, 2):
        (*_, (_, met)) = find_contamination(named, sets, distance=2, workers=workers)
        found.append(contamination_of(named, met, sets, 2))
    assert found[0] == found[1]


def test_what_was_met_is_neither_asked_nor_shown(listed: Path, solve: Generate, tmp_path: Path) -> None:
    query, shown = planted()
    out = excluded(str(listed))
    results = evaluate(solve, asked(exclude=str(listed), shots=[0, 20]), tmp_path)
    samples = load_samples(tmp_path)
    assert query not in {sample["example_id"] for sample in samples}
    ids = {name for sample in samples for name in sample["demonstration_ids"]}
    assert ids and not ids & out[TASK, "test", "support"] and shown in out[TASK, "test", "support"]
    queries = len(out[TASK, "test", "query"])
    assert {cell["n_queries"] for cell in results["cells"]} == {QUERIES - queries}
    (line,) = exclusion_lines(results)
    assert line.startswith(f"operator_induction, test: {queries} of {QUERIES} queries and ")
    assert all(redrawn(sample, None) is not None for sample in samples)


def test_the_image_of_a_query_that_is_left_out_stands_in_for_no_other(
    solve: Generate, tmp_path: Path
) -> None:
    items = items_of(TASK, {})
    queries = [items.query("test", number) for number in range(100)]
    out = [{"task": TASK, "split": "test", "role": "query", "id": query.id} for query in queries[50:]]
    listed = write_json(tmp_path / "list.json", {"schema_version": 1, "found": out, "tasks": []})
    evaluate(
        solve,
        asked(exclude=str(listed), conditions=["mismatched_images"], control_shots=[1]),
        tmp_path,
    )
    samples = load_samples(tmp_path)
    left = {query.images[0].id for query in queries[:50]}
    assert samples and all(sample["image_ids"][-1] in left for sample in samples)
    assert all(redrawn(sample, None) is not None for sample in samples)


def test_queries_that_a_list_does_not_know_are_named_above_the_table(listed: Path, solve: Generate) -> None:
    def lines(**changes: Any) -> list[str]:
        return exclusion_lines(evaluate(solve, asked(exclude=str(listed), **changes), None))

    more = lines(queries=QUERIES + 2)
    assert (
        f"operator_induction, test: 2 of {QUERIES + 2} queries were never looked for in training" in more[1]
    )
    (other,) = lines(splits=["held_out_rule"])
    assert other.startswith(f"operator_induction, held_out_rule: {QUERIES} of {QUERIES} queries were never")


def test_without_a_list_nothing_is_left_out_and_nothing_said(solve: Generate) -> None:
    results = evaluate(solve, asked(), None)
    assert exclusion_lines(results) == [] and {cell["n_queries"] for cell in results["cells"]} == {QUERIES}
    assert "exclude" not in identity_of([], asked())["eval"]


def test_another_list_makes_another_evaluation(listed: Path, tmp_path: Path) -> None:
    other = tmp_path / "contamination.json"
    other.write_text(listed.read_text())
    same, copied = (identity_of([], asked(exclude=str(path))) for path in (listed, other))
    assert same == copied
    found = json.loads(listed.read_text())
    other.write_text(json.dumps(found | {"found": found["found"][1:]}))
    assert identity_of([], asked(exclude=str(other))) != same


def test_the_report_shows_what_was_met_and_what_was_left_out(
    listed: Path, solve: Generate, tmp_path: Path
) -> None:
    evaluate(solve, asked(exclude=str(listed)), tmp_path)
    (tmp_path / "contamination.json").write_text(listed.read_text())
    page = write_report(tmp_path).read_text()
    assert "Met in 3 training documents" in page
    assert "demonstrations were left out, because they were met in training" in page


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("{", "cannot be read"),
        ("{}", "no schema_version 1"),
        ('{"schema_version": 1, "found": [{"task": "x"}], "tasks": []}', "'found' is no list of"),
    ],
)
def test_a_list_that_is_none_is_one_line(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(FlamingoError, match=f"{message}.*eval contamination") as caught:
        asked(exclude=str(path))
    assert "\n" not in str(caught.value)


def test_a_list_that_leaves_nothing_over_is_one_line(solve: Generate, tmp_path: Path) -> None:
    items = items_of(TASK)
    entries = [
        {"task": TASK, "split": "test", "role": "query", "id": items.query("test", i).id}
        for i in range(QUERIES)
    ]
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"schema_version": 1, "tasks": [], "found": entries}))
    with pytest.raises(FlamingoError, match="leaves out every query"):
        evaluate(solve, asked(exclude=str(path)), None)
