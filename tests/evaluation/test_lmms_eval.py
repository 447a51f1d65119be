"""Under lmms-eval itself, without a network: our tasks and our models there, as in our own runner, sample by sample."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flamingo_lite import cli
from flamingo_lite.checkpoints.io import save
from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.grid import EvaluationConfig, Prompt, prompts, settings
from flamingo_lite.evaluation.lmms.export import task_name, write_tasks
from flamingo_lite.evaluation.lmms.prompts import marked_document, said_document, without_roles
from flamingo_lite.evaluation.lmms.samples import document_of, read_images, sample_of
from flamingo_lite.evaluation.lmms.tasks import TaskFolder
from flamingo_lite.evaluation.results import load_results, load_samples, prompt_sha
from flamingo_lite.evaluation.scoring import score_cell
from flamingo_lite.evaluation.selection import SELECTORS
from flamingo_lite.evaluation.tasks import items_of
from tests.evaluation.file_tasks import write_json

ROOT = Path(__file__).parents[2]
ASKED = [
    "eval.tasks=[operator_induction,existence]",
    "eval.splits=[test]",
    "eval.styles=[direct,ranked_per_token]",
    "eval.shots=[2]",
    "eval.conditions=[standard]",
    "eval.control_styles=[direct]",
    "eval.queries=4",
    "eval.seeds=[0,1]",
    "eval.resamples=10",
    "eval.max_new_tokens=3",
]


def entry_points(folder: Path) -> Path:
    """What an installation of this checkout tells lmms-eval: its plug-ins, as pyproject.toml has them."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    information = folder / "flamingo_lite_of_this_checkout-0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: flamingo_lite_of_this_checkout\nVersion: 0\n"
    )
    lines = [
        f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in found.items())
        for group, found in declared.items()
    ]
    (information / "entry_points.txt").write_text("".join(lines))
    return folder


def run_lmms_eval(tmp_path: Path, *words: str) -> None:
    """Its own command, which may reach nothing."""
    home = tmp_path / "home"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(entry_points(tmp_path / "plugins"))]),
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "lmms_eval", "--verbosity", "DEBUG", *words]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def logged(folder: Path) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Its results by task, and its samples."""
    (results,) = folder.rglob("*_results.json")
    samples = {}
    for path in folder.rglob("*_samples_*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        samples[path.stem.partition("_samples_")[2]] = lines
    return json.loads(results.read_text())["results"], samples


@pytest.mark.slow
def test_a_run_under_lmms_eval_gives_our_runners_answers_and_scores(
    tmp_path: Path, model: Any, processor: Any
) -> None:
    pytest.importorskip("lmms_eval")
    save(model, processor, tmp_path / "model")
    own = [f"checkpoint={tmp_path / 'model'}", f"output={tmp_path / 'own'}", "eval.batch_size=4"]
    assert cli.main(["eval", *own, *ASKED]) == 0
    assert cli.main(["eval", "lmms", "--to", str(tmp_path / "tasks"), *ASKED]) == 0
    run_lmms_eval(
        tmp_path, "--model", "flamingo_lite", "--model_args", f"pretrained={tmp_path / 'model'}", "--batch_size", "4",
        "--include_path", str(tmp_path / "tasks"), "--tasks", "flamingo_lite", "--log_samples",
        "--output_path", str(tmp_path / "theirs"),
    )  # fmt: skip
    results, samples = logged(tmp_path / "theirs")
    cells = load_results(tmp_path / "own")["cells"]
    ours = load_samples(tmp_path / "own")
    compared = 0
    for cell in cells:
        setting = ("task", "split", "style", "condition", "shots")
        name = "_".join(["flamingo_lite", *(str(cell[key]) for key in setting)])
        mine = [s for s in ours if all(s[key] == cell[key] for key in setting)]
        rows = [json.loads(line) for line in (tmp_path / "tasks" / f"{name}.jsonl").read_text().splitlines()]
        theirs = {}
        for logged_sample in samples[name]:
            row = rows[logged_sample["doc_id"]]
            theirs[row["seed"], row["query_id"]] = (logged_sample, row)
        assert results[name][f"{cell['metric']},none"] == pytest.approx(cell["value"], abs=1e-6)
        assert len(theirs) == len(mine) > 0
        for sample in mine:
            other, row = theirs[sample["seed"], sample["query_id"]]
            assert row["prompt_sha"] == sample["prompt_sha"]
            assert other[cell["metric"]] == sample["score"]
            if cell["style"] != "ranked_per_token":
                assert other["filtered_resps"].strip() == sample["raw"].strip()
            compared += 1
    assert compared == len(ours)
    assert 0 < sum(s["score"] for s in ours if s["style"] == "ranked_per_token") < len(ours)


@pytest.mark.slow
def test_tasks_of_one_run_keep_their_own_lengths_and_ends(
    tmp_path: Path, model: Any, processor: Any, image_of: Any
) -> None:
    """lmms-eval hands the requests of all its tasks over in one call."""
    pytest.importorskip("lmms_eval")
    from lmms_eval.api.instance import Instance

    from flamingo_lite.evaluation.lmms.model import FlamingoLite

    save(model, processor, tmp_path / "model")
    asked = FlamingoLite(str(tmp_path / "model"), batch_size=4, device="cpu")
    asked.task_dict = {"any": {"test": [{}]}}

    def requested(**settings: Any) -> Any:
        arguments = ("how many?", settings, lambda doc: [image_of(1).pil()], 0, "any", "test")
        return Instance("generate_until", arguments, 0, {"task": "any", "doc_id": 0, "repeats": 1})

    (long,) = asked.generate_until([requested(max_new_tokens=12)])
    (short,) = asked.generate_until([requested(max_new_tokens=3)])
    assert len(short) < len(long) and long.startswith(short)
    stop = long[1]
    together = [
        requested(max_new_tokens=3),
        requested(max_new_tokens=12, until=[stop]),
        requested(max_new_tokens=12, until=None),
    ]
    assert asked.generate_until(together) == [short, long.partition(stop)[0], long]


@pytest.mark.slow
def test_the_model_that_takes_messages_answers_our_tasks_as_the_one_that_takes_texts(
    tmp_path: Path, model: Any, processor: Any
) -> None:
    pytest.importorskip("lmms_eval")
    from lmms_eval.api.instance import Instance

    from flamingo_lite.evaluation.lmms.model import FlamingoLite, FlamingoLiteChat

    save(model, processor, tmp_path / "model")
    docs = [doc for _, doc in records(tmp_path / "tasks", asked(["operator_induction"], ["direct"]))]
    tasks, length = TaskFolder(tmp_path / "tasks"), {"max_new_tokens": 4}
    found = []
    for made in (FlamingoLite, FlamingoLiteChat):
        answering = made(str(tmp_path / "model"), batch_size=4, device="cpu")
        answering.task_dict = {"any": {"test": docs}}
        requests = []
        for number, doc in enumerate(docs):
            texts = (tasks.doc_to_text(doc), length, tasks.doc_to_visual)
            arguments = texts if made is FlamingoLite else ("", tasks.doc_to_messages, length)
            about = {"task": "any", "doc_id": number, "repeats": 1}
            requests.append(Instance("generate_until", (*arguments, number, "any", "test"), number, about))
        found.append(answering.generate_until(requests))
    assert found[0] == found[1] and len(set(found[0])) > 1


def asked(tasks: list[str], styles: list[str]) -> EvaluationConfig:
    return EvaluationConfig(
        tasks=tasks, splits=["test"], styles=styles, control_styles=styles, shots=[0, 2], seeds=[0], queries=3,
        conditions=["standard"],
    )  # fmt: skip


def records(folder: Path, config: EvaluationConfig) -> list[tuple[Prompt, dict[str, Any]]]:
    """Each prompt with the line that was written of it."""
    write_tasks(config, folder)
    found = []
    for setting in settings(config):
        lines = (folder / f"{task_name(setting)}.jsonl").read_text().splitlines()
        found += zip(prompts(setting, config), map(json.loads, lines), strict=True)
    return found


def test_a_record_holds_the_prompt_as_our_runner_builds_it(tmp_path: Path) -> None:
    tasks = TaskFolder(tmp_path)
    for prompt, doc in records(tmp_path, asked(["operator_induction_interleaved", "existence"], ["direct"])):
        sample = sample_of(doc)
        rebuilt = document_of(sample, read_images(sample, tmp_path))
        assert doc["prompt_sha"] == prompt_sha(rebuilt) == prompt_sha(prompt.document)
        assert tasks.doc_to_target(doc) == prompt.target
        assert tasks.doc_to_text(doc).count("<image>") == len(tasks.doc_to_visual(doc)) == len(rebuilt.images)
        messages = tasks.doc_to_messages(doc)
        roles = [message["role"] for message in messages]
        assert roles == ["user", "assistant"] * prompt.setting.shots + ["user"]
        shown = [part["type"] for message in messages for part in message["content"]]
        assert shown.count("image") == len(rebuilt.images)
        answers = [m["content"][0]["text"] for m in messages if m["role"] == "assistant"]
        assert answers == [text.text.strip() for text in prompt.document.texts if text.ends_chunk]


@pytest.mark.parametrize("task", ["operator_induction", "existence", "captioning"])
def test_scores_of_any_texts_are_our_own(task: str, tmp_path: Path) -> None:
    """Captions are scored together, so their figure comes from all of them."""
    found = records(tmp_path, asked([task], ["direct"]))
    tasks = TaskFolder(tmp_path)
    for texts in (["yes", "no", "a red circle"], ["7", " 3 ", ""]):
        of_shots = [each for each in found if each[0].setting.shots == 2]
        chosen = [prompt for prompt, _ in of_shots]
        answers = [*texts[:2], chosen[2].target]
        expected = [line["score"] for line in score_cell(chosen, answers, "anyone")]
        metric = chosen[0].style.metric
        given = [
            tasks.process_results(doc, [text.strip()])[metric]
            for (_, doc), text in zip(of_shots, answers, strict=True)
        ]
        if chosen[0].style.together is None:
            assert given == expected
        assert tasks.aggregate(given) == pytest.approx(sum(expected) / len(expected))
        assert tasks.aggregate(given) > 0


def test_the_choice_of_least_loss_is_scored_whether_a_pair_comes_as_it_is_or_as_a_text(
    tmp_path: Path,
) -> None:
    tasks = TaskFolder(tmp_path)
    for prompt, doc in records(tmp_path, asked(["existence"], ["ranked_per_token"])):
        choices = tasks.doc_to_choice(doc)
        right = next(i for i, text in enumerate(choices) if text.strip() == prompt.target)
        for best in range(len(choices)):
            losses = [(0.5 if i == best else 2.0, False) for i in range(len(choices))]
            for results in (losses, list(map(str, losses))):
                assert tasks.process_results(doc, results) == {prompt.style.metric: float(best == right)}


def test_a_ranking_that_lmms_eval_has_no_figures_for_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    with pytest.raises(FlamingoError, match="ranks by calibrated.*expected one of: direct.*ranked_per_token"):
        write_tasks(asked(["existence"], ["ranked_calibrated"]), tmp_path / "tasks")
    assert not (tmp_path / "tasks").exists()


def test_a_folder_is_written_anew_and_one_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    write_tasks(asked(["existence"], ["ranked_per_token"]), tmp_path / "tasks")
    names = write_tasks(asked(["existence"], ["direct"]), tmp_path / "tasks")
    assert sorted(path.stem for path in (tmp_path / "tasks").glob("*.yaml")) == sorted(names)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    with pytest.raises(FlamingoError, match="something else than tasks"):
        write_tasks(asked(["existence"], ["direct"]), tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_tasks_that_cannot_be_written_leave_those_that_were_there(tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    write_tasks(asked(["existence"], ["direct"]), folder)
    (folder / "mine").mkdir()
    (folder / "mine" / "notes.txt").write_text("mine")

    def whole() -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    before = whole()
    query = items_of("existence").query
    out = [
        {"task": "existence", "split": "test", "role": "query", "id": query("test", i).id} for i in range(3)
    ]
    listed = write_json(tmp_path / "list.json", {"schema_version": 1, "found": out, "tasks": []})
    with pytest.raises(FlamingoError, match="leaves out every query"):
        write_tasks(replace(asked(["existence"], ["direct"]), exclude=listed), folder)
    assert whole() == before and sorted(path.name for path in tmp_path.iterdir()) == ["list.json", "tasks"]
    write_tasks(asked(["existence"], ["ranked_per_token"]), folder)
    assert before.keys() != whole().keys() and (folder / "mine" / "notes.txt").read_text() == "mine"


def test_a_query_without_a_choice_is_no_task_of_lmms_eval_which_counts_no_failures(tmp_path: Path) -> None:
    refusing = replace(SELECTORS["random"], refusal=lambda wanted: "its image is broken")
    with pytest.raises(FlamingoError, match="its image is broken; lmms-eval counts no failures"):
        write_tasks(asked(["existence"], ["direct"]), tmp_path / "tasks", {"random": refusing})
    assert not list(tmp_path.iterdir())


def test_prompts_of_other_tasks_have_their_images_where_marks_say_or_first(image_of: Any) -> None:
    one, two = image_of(1).pil(), image_of(2).pil()
    images = [Image(one), Image(two)]
    expected = [images[0], Text("or", loss=False), images[1], Text("?", loss=False)]
    assert list(marked_document("<image>or<image>?", [one, two])) == expected
    assert list(marked_document("<image 1>or<image 2>?", [one, two])) == expected
    assert list(marked_document("which?", [one, two])) == [*images, Text("which?", loss=False)]
    with pytest.raises(FlamingoError, match="1 <image> marks but 2 images"):
        marked_document("<image>?", [one, two])
    with pytest.raises(FlamingoError, match="asks about a str; expected pictures"):
        marked_document("what is heard?", ["sound.wav"])


def test_messages_are_a_conversation_or_without_roles_an_interleaved_prompt(image_of: Any) -> None:
    shown = {"type": "image", "url": image_of(1).pil()}
    messages = [
        {"role": "user", "content": [shown, {"type": "text", "text": "how many?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "two"}]},
        {"role": "user", "content": [{"type": "text", "text": "sure?"}]},
    ]
    said = said_document(messages)
    assert [text.role for text in said.texts] == ["user", "assistant", "user"]
    assert without_roles(said) == Document(
        [
            Image(image_of(1).pil()),
            Text("how many?", loss=False),
            Text(" two", ends_chunk=True),
            Text("sure?", loss=False),
        ]
    )
