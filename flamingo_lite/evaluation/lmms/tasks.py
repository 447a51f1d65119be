"""What a task of lmms-eval is made of, for a folder that `export.py` has written: prompts from its files, our scores.

The folder's own utils.py names these functions to lmms-eval.
"""

import ast
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.demonstrations import Example
from flamingo_lite.evaluation.lmms.samples import (
    candidates_of,
    document_of,
    marked_text,
    messages_of,
    read_images,
    sample_of,
)
from flamingo_lite.evaluation.scoring import scored
from flamingo_lite.evaluation.tasks import TASKS, items_of
from flamingo_lite.evaluation.tasks.task import Style

FILES = "files.json"
"""Beside the tasks: what those from files read, by task and name."""

Doc = Mapping[str, Any]


class TaskFolder:
    """The functions of the tasks in `folder`. All take a record as lmms-eval has read it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @functools.cached_property
    def files(self) -> dict[str, dict[str, str]]:
        try:
            return json.loads((self.folder / FILES).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FlamingoError(
                f"{self.folder / FILES} cannot be read ({error}); write the folder again with flamingo-lite eval lmms"
            ) from error

    def doc_to_visual(self, doc: Doc) -> list[Any]:
        """The pictures of demonstrations and query, in order."""
        return [image.pil() for image in read_images(sample_of(doc), self.folder)]

    def doc_to_text(self, doc: Doc) -> str:
        return marked_text(sample_of(doc))

    def doc_to_messages(self, doc: Doc) -> list[dict[str, Any]]:
        sample = sample_of(doc)
        return messages_of(document_of(sample, read_images(sample, self.folder)))

    def doc_to_target(self, doc: Doc) -> str:
        return sample_of(doc)["target"]

    def doc_to_choice(self, doc: Doc) -> list[str]:
        return [candidate.text for candidate in candidates_of(sample_of(doc))]

    def process_results(self, doc: Doc, results: Sequence[Any]) -> dict[str, Any]:
        """The score under the name of its metric; for scores that need all answers, what `aggregate` needs of this one.

        `results`: the text, or of each choice the mean loss of its tokens and whether it is what greedy search writes.
        """
        sample = sample_of(doc)
        style, example = self._asked(sample)
        raw = results[0]
        if style.candidates is not None:
            losses = [_loss(result) for result in results]
            raw = candidates_of(sample)[losses.index(min(losses))].text
        if style.together is not None:
            return {style.metric: {"raw": raw, **{name: sample[name] for name in KEY}}}
        return {style.metric: scored(style, example, raw).score}

    def aggregate(self, found: Sequence[Any]) -> float:
        """The figure of a task, from what `process_results` gave of each answer."""
        if not isinstance(found[0], Mapping):
            return sum(found) / len(found)
        asked = [self._asked(each) for each in found]
        style = asked[0][0]
        assert style.together is not None
        scores = style.together([each["raw"] for each in found], [example for _, example in asked])
        return sum(scores) / len(scores)

    def _asked(self, sample: Mapping[str, Any]) -> tuple[Style, Example]:
        items = items_of(sample["task"], self.files)
        return TASKS[sample["task"]].styles[sample["style"]], items.query(sample["split"], sample["query_id"])


KEY = ("task", "split", "style", "query_id")


def _loss(result: Any) -> float:
    """lmms-eval 0.7.3 makes a text of the pair that most of its models return: "(0.25, True)"."""
    loss, _ = ast.literal_eval(result) if isinstance(result, str) else result
    return loss
