"""Writes our tasks for lmms-eval: a YAML and a file of lines for each cell of the grid, their pictures, and our scores.

What is asked, with the demonstrations that we choose, is what our own runner asks under the same settings.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from flamingo_lite.checkpoints.atomic import whole_directory
from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.grid import EvaluationConfig, Setting, prompts, settings
from flamingo_lite.evaluation.lmms.samples import IMAGES, record, write_images
from flamingo_lite.evaluation.lmms.tasks import FILES
from flamingo_lite.evaluation.results import write_atomically
from flamingo_lite.evaluation.selection import SELECTORS, Selection
from flamingo_lite.evaluation.tasks import TASKS
from flamingo_lite.evaluation.tasks.task import Style

TAG = "flamingo_lite"
"""What lmms-eval calls all tasks of a folder."""
RANKING = "per_token"
"""The rule by which lmms-eval can choose: its models hand back the mean loss of a candidate's tokens, and no more."""
UTILS = '''"""Written by flamingo-lite eval lmms: what the YAML files beside it name."""

from pathlib import Path

from flamingo_lite.evaluation.lmms.tasks import TaskFolder

_folder = TaskFolder(Path(__file__).parent)
doc_to_visual, doc_to_text, doc_to_messages = _folder.doc_to_visual, _folder.doc_to_text, _folder.doc_to_messages
doc_to_target, doc_to_choice = _folder.doc_to_target, _folder.doc_to_choice
process_results, aggregate = _folder.process_results, _folder.aggregate
'''


def write_tasks(
    config: EvaluationConfig, folder: Path, selectors: Mapping[str, Selection] = SELECTORS
) -> list[str]:
    """The names of the tasks that were written into `folder`, one for each cell; a task asks under every seed.

    They take the place of tasks that were written there before when all are whole; what else lies there stays. Errors:
    `FlamingoError` for a style whose ranking lmms-eval has no figures for, for a folder that holds something else, and for
    a query that a selector refuses, leaving the folder as it was; else as `grid.build_prompt`.
    """
    cells = settings(config)
    for setting in cells:
        _check_ranking(setting)
    files = {
        task: {name: str(Path(path).resolve()) for name, path in named.items()}
        for task, named in config.files.items()
    }
    with whole_directory(folder.resolve(), _check_replaceable) as written:
        write_atomically(written / FILES, (json.dumps(files, indent=1) + "\n").encode())
        for setting in cells:
            _write_task(setting, config, written, selectors)
        write_atomically(written / "utils.py", UTILS.encode())
        _copy_others(folder, written)
    return [task_name(setting) for setting in cells]


def _write_task(
    setting: Setting, config: EvaluationConfig, folder: Path, selectors: Mapping[str, Selection]
) -> None:
    """Its pictures, its lines and its YAML."""
    name, lines = task_name(setting), []
    for prompt in prompts(setting, config, selectors):
        if prompt.failure is not None:
            raise FlamingoError(
                f"query {prompt.query.id} has no demonstrations: {prompt.failure}; lmms-eval counts no failures: mend "
                "the image, or choose another selector"
            )
        write_images(prompt.document.images, folder)
        lines.append(json.dumps(record(prompt), ensure_ascii=False) + "\n")
    write_atomically(folder / f"{name}.jsonl", "".join(lines).encode())
    write_atomically(folder / f"{name}.yaml", _yaml(setting, name, config.max_new_tokens).encode())


def _check_replaceable(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise FlamingoError(f"{folder} is a file; choose another --to")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / FILES).is_file():
        raise FlamingoError(f"{folder} holds something else than tasks for lmms-eval; choose another --to")


def _copy_others(before: Path, now: Path) -> None:
    """What lies in the folder of tasks that is none of them and was not written anew."""
    for path in before.iterdir() if before.is_dir() else ():
        if path.name.startswith(f"{TAG}_") or path.name in (IMAGES, "__pycache__", "utils.py", FILES):
            continue
        if path.is_dir():
            shutil.copytree(path, now / path.name, symlinks=True)
        else:
            shutil.copy2(path, now / path.name, follow_symlinks=False)


def task_name(setting: Setting) -> str:
    """Of a cell, as lmms-eval is told it: "flamingo_lite_reading_test_direct_standard_4"."""
    parts = (setting.task, setting.split, setting.style, setting.condition, setting.shots)
    return "_".join((TAG, *map(str, parts))).replace("-", "_")


def _check_ranking(setting: Setting) -> None:
    style = TASKS[setting.task].styles[setting.style]
    if style.candidates is None or style.ranking == RANKING:
        return
    right = [
        name
        for name, other in TASKS[setting.task].styles.items()
        if other.candidates is None or other.ranking == RANKING
    ]
    raise FlamingoError(
        f"style {setting.style} of {setting.task} ranks by {style.ranking}, and lmms-eval's models give only the mean "
        f"loss of a candidate's tokens; expected one of: {', '.join(right)}"
    )


class _Function(str):
    """A name that YAML marks as a function of utils.py."""


def _yaml(setting: Setting, name: str, max_new_tokens: int | None) -> str:
    style = TASKS[setting.task].styles[setting.style]

    class Dumper(yaml.SafeDumper):
        pass

    Dumper.add_representer(
        _Function, lambda dumper, value: dumper.represent_scalar("!function", f"utils.{value}")
    )
    task = {
        "task": name,
        "tag": TAG,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}},
        "test_split": "test",
        "target_delimiter": "",
        **{part: _Function(part) for part in ("doc_to_visual", "doc_to_text", "doc_to_target")},
        **_answering(style, max_new_tokens),
        "process_results": _Function("process_results"),
        "metric_list": [
            {"metric": style.metric, "aggregation": _Function("aggregate"), "higher_is_better": True}
        ],
        "metadata": {"version": 1},
    }
    return yaml.dump(task, Dumper=Dumper, sort_keys=False)


def _answering(style: Style, max_new_tokens: int | None) -> dict[str, Any]:
    """How an answer is had. A text is cut where our style cuts it: lmms-eval takes the blanks off it afterwards."""
    if style.candidates is not None:
        return {"output_type": "multiple_choice", "doc_to_choice": _Function("doc_to_choice")}
    generation = {
        "max_new_tokens": max_new_tokens or style.max_new_tokens,
        "until": list(style.stop),
        "do_sample": False,
    }
    return {
        "output_type": "generate_until",
        "doc_to_messages": _Function("doc_to_messages"),
        "generation_kwargs": generation,
    }
