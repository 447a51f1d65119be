"""A small set of files for every task that reads some, in the published layouts, made here."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

Files = dict[str, str]


def picture(path: Path, number: int) -> None:
    """A small image of its own for each number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, format="PNG")
    path.write_bytes(buffer.getvalue())


def write_json(path: Path, value: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return str(path)


def write_lines(path: Path, values: list[Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(value)}\n" for value in values), encoding="utf-8")
    return str(path)


def pictures(folder: Path, names: list[str], first: int = 0) -> str:
    for number, name in enumerate(names, first):
        picture(folder / name, number)
    return str(folder)


# ---- VL-ICL

OPERATOR_QUESTION = "What is the result of the following mathematical expression?"


def vl_icl(root: Path, task: str) -> Files:
    bench = root / "VL-ICL"
    folder = bench / task
    numbers = [(3, 5), (7, 2), (4, 4), (9, 6)]
    if task.startswith("operator_induction"):

        def item(a: int, b: int, name: str, answer: Any) -> dict[str, Any]:
            names = [f"{task}/{name}_{i}.png" for i in range(2 if task.endswith("interleaved") else 1)]
            pictures(bench, names, hash_of(name))
            return {"id": name, "image": names, "question": OPERATOR_QUESTION, "answer": answer}

        queries = [
            item(2, 6, "query_0", -4) | {"operator": "-"},
            item(2, 3, "query_1", 6) | {"operator": "x"},
        ]
        support = [item(a, b, f"support_{i}", [a + b, a - b, a * b]) for i, (a, b) in enumerate(numbers)]
    elif task == "open_mi":
        names = [f"{task}/{i}.png" for i in range(8)]
        pictures(bench, names)
        classes = {"dax": names[2:4], "blicket": names[4:6], "wug": names[6:8]}
        queries = [
            {
                "image": [names[i]],
                "question": "This is a",
                "answer": answer,
                "classes": list(classes),
                "support": {name: {"images": images} for name, images in classes.items()},
            }
            for i, answer in enumerate(["dax", "wug"])
        ]
        support = []
    elif task == "matching_mi":
        names = [f"{task}/{i}.png" for i in range(12)]
        pictures(bench, names)
        question = "Do they match?"

        def pair(i: int, answer: str) -> dict[str, Any]:
            return {"image": names[2 * i : 2 * i + 2], "question": question, "answer": answer}

        queries = [pair(0, "yes"), pair(1, "no")]
        support = [{"same": pair(i, "yes"), "diff": pair(i + 1, "no")} for i in (2, 4)]
    else:
        names = [f"{task}/{i}.png" for i in range(5)]
        pictures(bench, names)
        answers: list[Any] = [3, 0, 2, 1, 4] if task == "clevr" else ["STOP", "Exit", "5.99", "open", "Taxi"]
        items = [
            {
                "image": [name],
                "question": "color: red" if task == "clevr" else "What is the text?",
                "answer": a,
            }
            for name, a in zip(names, answers, strict=True)
        ]
        queries, support = items[:2], items[2:]
    write_json(folder / "query.json", queries)
    write_json(folder / "support.json", support)
    return {"folder": str(bench)}


def hash_of(name: str) -> int:
    return sum(ord(c) * 31**i for i, c in enumerate(name)) % 10_000


# ---- questions with short answers


def vqa(root: Path, task: str) -> Files:
    files: Files = {}
    for prefix, split, first in (("", "val2014", 0), ("support_", "train2014", 4)):
        ids = range(first, first + 4)
        questions = [{"question_id": i, "image_id": i, "question": f"What is it, {i}?"} for i in ids]
        about = {"question_type": "what is", "answer_type": "other"}
        annotations = [
            {"question_id": i, "image_id": i, **about, "answers": answers(f"thing {i}", f"object {i}")}
            # The two files need not have one order.
            | ({"multiple_choice_answer": f"thing {i}"} if task == "vqav2" else {})
            for i in reversed(ids)
        ]
        head = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": split}
        files[f"{prefix}questions"] = write_json(root / f"q_{split}.json", head | {"questions": questions})
        files[f"{prefix}annotations"] = write_json(
            root / f"a_{split}.json", head | {"annotations": annotations}
        )
        files[f"{prefix}images"] = pictures(root / split, [f"COCO_{split}_{i:012d}.jpg" for i in ids], first)
    return files


def answers(most: str, rest: str) -> list[dict[str, Any]]:
    """Ten annotators, of whom the first and two more say `rest`."""
    said = [rest, *[most] * 7, rest, rest]
    return [{"answer": text, "answer_confidence": "yes", "answer_id": i} for i, text in enumerate(said, 1)]


def textvqa(root: Path, task: str) -> Files:
    files = {"images": pictures(root / "images", [f"a{i}.jpg" for i in range(8)])}
    for name, first in (("annotations", 0), ("support", 4)):
        data = [
            {
                "question_id": 30 + i,
                "image_id": f"a{i}",
                "question": f"what is number {i}?",
                "answers": [f"no. {i}"] * 6 + ["unanswerable"] * 4,
                "set_name": "val",
            }
            for i in range(first, first + 4)
        ]
        about = {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1"}
        files[name] = write_json(root / f"{name}.json", about | {"data": data})
    return files


def vizwiz(root: Path, task: str) -> Files:
    files: Files = {}
    for name, images, first in (("annotations", "images", 0), ("support", "support_images", 4)):
        names = [f"VizWiz_{i:08d}.jpg" for i in range(first, first + 4)]
        files[images] = pictures(root / images, names, first)
        files[name] = write_json(
            root / f"{name}.json",
            [
                {"image": image, "question": "what is this?", "answers": answers("unanswerable", f"can {image[7:15]}"),
                 "answer_type": "unanswerable", "answerable": 0}
                for image in names
            ],
        )  # fmt: skip
    return files


def gqa(root: Path, task: str) -> Files:
    files = {"images": pictures(root / "images", [f"{i}.jpg" for i in range(8)])}
    for name, first in (("questions", 0), ("support", 4)):
        found = {
            f"2{i:04d}": {
                "imageId": str(i),
                "question": f"What is left of it, {i}?",
                "answer": f"chair {i}",
                "fullAnswer": "It is a chair.",
                "isBalanced": True,
            }
            for i in range(first, first + 4)
        }
        files[name] = write_json(root / f"{name}.json", found)
    return files


def clevr_math(root: Path, task: str) -> Files:
    files: Files = {}
    for name, split, first in (("questions", "test", 0), ("support", "train", 4)):
        names = [f"CLEVR_{split}_{i:06d}.png" for i in range(first, first + 4)]
        files["images"] = str(root / "images")
        pictures(root / "images" / split, names, first)
        question = "Subtract all red things. How many objects are left?"
        found = [
            {"image_filename": image, "split": split, "question": question, "answer": i % 3,
             "template_filename": "subtraction.json"}
            for i, image in enumerate(names, first)
        ]  # fmt: skip
        files[name] = write_json(root / f"{name}.json", {"info": {"split": split}, "questions": found})
    return files


def pope(root: Path, task: str) -> Files:
    files = {"images": pictures(root / "images", [f"COCO_val2014_{i:012d}.jpg" for i in range(6)])}
    for name, first in (("questions", 0), ("support", 3)):
        found = [
            {"question_id": 2 * first + 2 * i + j, "image": f"COCO_val2014_{first + i:012d}.jpg",
             "text": f"Is there a {thing} in the image?", "label": label}
            for i in range(3)
            for j, (thing, label) in enumerate((("dog", "yes"), ("spoon", "no")))
        ]  # fmt: skip
        files[name] = write_lines(root / f"{name}.json", found)
    return files


# ---- choices, problems, reading


def mathvista(root: Path, task: str) -> Files:
    files = {"images": str(root)}
    pictures(root / "images", [f"{i}.jpg" for i in range(1, 9)])
    kinds: list[dict[str, Any]] = [
        {"question": "what is the total volume of the measuring cup?", "unit": "g", "precision": None,
         "choices": None, "answer": "1000", "question_type": "free_form", "answer_type": "integer"},
        {"question": "Find $m\\angle H$", "unit": None, "precision": None, "choices": ["97", "102", "107", "122"],
         "answer": "107", "question_type": "multi_choice", "answer_type": "text"},
        {"question": "How far?", "unit": None, "precision": 1.0, "choices": None, "answer": "1.2",
         "question_type": "free_form", "answer_type": "float"},
        {"question": "Between which years?", "unit": None, "precision": None, "choices": None,
         "answer": "[2007, 2008]", "question_type": "free_form", "answer_type": "list"},
    ]  # fmt: skip
    about = {"split": "testmini", "task": "textbook question answering", "skills": ["algebraic reasoning"]}
    for name, first in (("annotations", 1), ("support", 5)):
        found = {
            str(first + i): {
                **kind,
                "image": f"images/{first + i}.jpg",
                "pid": str(first + i),
                "metadata": about,
            }
            for i, kind in enumerate(kinds)
        }
        files[name] = write_json(root / f"{name}.json", found)
    return files


def mathverse(root: Path, task: str) -> Files:
    files = {"images": pictures(root / "images", [f"image_{i}.png" for i in range(8)])}
    for name, first in (("annotations", 0), ("support", 4)):
        found = []
        for i in range(first, first + 4):
            is_free = i % 2
            question = "AB is 4. Find x." + ("" if is_free else "\nChoices:\nA:40\nB:60")
            found.append(
                {
                    "sample_index": str(i + 1),
                    "problem_index": str(i // 2 + 1),
                    "problem_version": "Text Only" if i == first else "Vision Only",
                    "question": question,
                    "image": "" if i == first else f"image_{i}.png",
                    "answer": "4" if is_free else "B",
                    "question_type": "free-form" if is_free else "multi-choice",
                    "metadata": {"split": "testmini"},
                    "query_wo": f"Please directly answer.\nQuestion: {question}",
                    "query_cot": f"Please first conduct reasoning.\nQuestion: {question}",
                    "question_for_eval": question,
                }
            )
        files[name] = write_json(root / f"{name}.json", found)
    return files


def ocrbench(root: Path, task: str) -> Files:
    files = {"images": str(root / "images")}
    kinds = [
        ("IIIT5K", "what is written in the image?", "CENTRE", "Regular Text Recognition"),
        ("docVQA", "What is the date?", ["May 5", "5 May"], "Doc-oriented VQA"),
        (
            "HME100k",
            "Please write out the formula",
            "x ^ { 2 }",
            "Handwritten Mathematical Expression Recognition",
        ),
    ]
    for name, first in (("annotations", 0), ("support", 3)):
        found = []
        for i, (dataset, question, answer, kind) in enumerate(kinds, first):
            picture(root / "images" / dataset / f"{i}.png", i)
            found.append(
                {"dataset_name": dataset, "id": i, "image_path": f"{dataset}/{i}.png", "question": question,
                 "answers": answer, "type": kind}
            )  # fmt: skip
        files[name] = write_json(root / f"{name}.json", found)
    return files


def science_qa(root: Path, task: str) -> Files:
    problems, splits = {}, {"train": ["1", "2", "3"], "val": ["4"], "test": ["5", "6"], "minitest": ["5"]}
    for split, pids in splits.items():
        for pid in pids if split != "minitest" else []:
            has_image = int(pid) % 2 == 1
            if has_image:
                picture(root / "images" / split / pid / "image.png", int(pid))
            problems[pid] = {
                "question": f"Which is it, {pid}?", "choices": ["a ball", "a box", "a wall"][: 2 + int(pid) % 2],
                "answer": int(pid) % 2, "hint": "" if has_image else "Look.", "image": "image.png" if has_image else None,
                "task": "closed choice", "grade": f"grade{pid}", "subject": "natural science", "topic": "physics",
                "category": "Matter", "skill": "Tell", "lecture": "Mass is\nmatter.", "solution": "It is heavy.",
                "split": split,
            }  # fmt: skip
    write_json(root / "problems.json", problems)
    write_json(root / "pid_splits.json", splits)
    return {"folder": str(root)}


# ---- captions, memes, classes


def captions(root: Path, task: str) -> Files:
    images = []
    for i, split in enumerate(["test", "test", "val", "train", "restval", "train"]):
        folder = "val2014" if i < 3 else "train2014"
        name = f"COCO_{folder}_{i:012d}.jpg" if task == "coco_captions" else f"{1000 + i}.jpg"
        picture(root / "images" / (folder if task == "coco_captions" else "") / name, i)
        raws = [f" a dog runs on a beach, take {i}. ", f"a dog at the sea {i}", "sand"]
        sentences = [
            {"raw": raw, "tokens": raw.split(), "imgid": i, "sentid": 3 * i + j} for j, raw in enumerate(raws)
        ]
        image: dict[str, Any] = {
            "filename": name,
            "split": split,
            "imgid": i,
            "sentids": [0],
            "sentences": sentences,
        }
        images.append(image | ({"filepath": folder, "cocoid": i} if task == "coco_captions" else {}))
    annotations = write_json(root / "dataset.json", {"dataset": "coco", "images": images})
    return {"annotations": annotations, "images": str(root / "images")}


def hateful_memes(root: Path, task: str) -> Files:
    files = {"images": str(root)}
    pictures(root / "img", [f"{i:05d}.png" for i in range(8)])
    for name, first in (("annotations", 0), ("support", 4)):
        files[name] = write_lines(
            root / f"{name}.jsonl",
            [
                {"id": i, "img": f"img/{i:05d}.png", "label": i % 2, "text": f"words {i}"}
                for i in range(first, first + 4)
            ],
        )
    return files


def image_folders(root: Path, task: str) -> Files:
    for folder, first in (("val", 0), ("train", 4)):
        for i, name in enumerate(["n01", "n02"]):
            pictures(root / folder / name, ["a.png", "b.png"], first + 2 * i)
    (root / "classes.txt").write_text("n01 tench\nn02 great white shark\n", encoding="utf-8")
    return {
        "images": str(root / "val"),
        "support": str(root / "train"),
        "classes": str(root / "classes.txt"),
    }


MAKERS: dict[str, Callable[[Path, str], Files]] = {
    **dict.fromkeys(("vqav2", "ok_vqa"), vqa),
    "textvqa": textvqa, "vizwiz": vizwiz, "gqa": gqa, "clevr_math": clevr_math, "pope": pope,
    "mathvista": mathvista, "mathverse": mathverse, "ocrbench": ocrbench, "science_qa": science_qa,
    **dict.fromkeys(("coco_captions", "flickr30k_captions"), captions),
    "hateful_memes": hateful_memes, "image_folders": image_folders,
}  # fmt: skip


def make_files(task: str, root: Path) -> Files:
    """Writes the files of a task below `root`; what `eval.files.TASK` then is."""
    if task.startswith("vl_icl_"):
        return vl_icl(root, task.removeprefix("vl_icl_"))
    return MAKERS[task](root, task)
