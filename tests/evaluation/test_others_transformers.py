"""Models of transformers in our evaluation: what they write and how likely they find answers, by plain use of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from flamingo_lite import cli
from flamingo_lite.checkpoints.io import save
from flamingo_lite.commands.subjects import subjects_of
from flamingo_lite.config import Config
from flamingo_lite.document import Document, Image, Text
from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.answers import Written
from flamingo_lite.evaluation.comparison import compare
from flamingo_lite.evaluation.grid import EvaluationConfig, settings
from flamingo_lite.evaluation.metrics import GenerationFailure
from flamingo_lite.evaluation.others.loading import is_of_transformers, load_model, load_processor
from flamingo_lite.evaluation.others.transformers_answers import TransformersAnswers
from flamingo_lite.evaluation.others.writing import image_mark, write
from flamingo_lite.evaluation.ranking import RANKINGS, Likelihood
from flamingo_lite.evaluation.rendering import RENDERINGS, rendered_answer
from flamingo_lite.evaluation.results import load_results, load_samples
from flamingo_lite.evaluation.runner import identity_of
from flamingo_lite.evaluation.systems import paired, read_runs
from tests.evaluation.peers import PEERS, llava

MARKS = {"llava": "<image>", "idefics3": "<image>", "qwen2_vl": "<|vision_start|><|image_pad|><|vision_end|>"}
ENDS = {"llava": "</s>", "idefics3": "<end_of_utterance>", "qwen2_vl": "</s>"}


@pytest.fixture(scope="module", params=sorted(PEERS))
def peer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Any]:
    directory = PEERS[request.param](tmp_path_factory.mktemp("peers") / request.param)
    return request.param, load_model(directory, "auto", torch.device("cpu")), load_processor(directory)


def prompts(image_of: Any) -> list[Document]:
    """Of unequal numbers of images, and of unequal lengths."""
    shown = [image_of(1), Text("2 ? 3 =", loss=False), Text(" 5", ends_chunk=True)]
    return [
        Document([*shown, image_of(2), Text("4 ? 5 =", loss=False)]),
        Document([image_of(3), Text("1 ? 1 =", loss=False)]),
        Document([*shown, image_of(4), image_of(5), Text("and these two, ? =", loss=False)]),
        Document([Text("no picture: 1 ? 1 =", loss=False)]),
    ]


@pytest.mark.parametrize("rendering", ["interleaved", "turns", "one_turn"])
def test_texts_are_those_of_generate_on_each_prompt_alone(peer: Any, rendering: str, image_of: Any) -> None:
    name, model, processor = peer
    documents = [RENDERINGS[rendering](document) for document in prompts(image_of)]
    found = TransformersAnswers(model, processor, batch_size=4).generate(documents, 5)
    for document, each in zip(documents, found, strict=True):
        images = [image.pil() for image in document.images]
        text = write(document, processor).text
        assert text.count(MARKS[name]) == len(images)
        inputs = processor(text=text, images=images or None, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=5, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        expected = processor.tokenizer.decode(ids, skip_special_tokens=True)
        assert isinstance(each, Written) and each.margin is not None and each.margin > 1
        assert each.text == (expected.partition("\n")[0] if rendering == "interleaved" else expected)


@pytest.mark.parametrize("rendering", ["interleaved", "turns"])
def test_likelihoods_are_those_of_the_whole_text_less_those_of_the_prompt(
    peer: Any, rendering: str, image_of: Any
) -> None:
    name, model, processor = peer
    documents = [RENDERINGS[rendering](document) for document in prompts(image_of)]
    candidates = [rendered_answer(rendering, Text(text, ends_chunk=True)) for text in (" 5", " 21", " none")]
    found = TransformersAnswers(model, processor, batch_size=2).rank(documents, [candidates] * len(documents))
    mark = image_mark(processor)
    for document, likelihoods in zip(documents, found, strict=True):
        images = [image.pil() for image in document.images]
        prompt = write(document, processor).text
        assert mark in prompt or not images
        for candidate, likelihood in zip(candidates, likelihoods, strict=True):
            ending = "\n" if rendering == "interleaved" else ENDS[name]
            space = "" if rendering == "interleaved" else " "
            inputs = processor(
                text=prompt + space + candidate.text + ending, images=images or None, return_tensors="pt"
            )
            start = processor(text=prompt, images=images or None, return_tensors="pt")["input_ids"].shape[1]
            with torch.no_grad():
                scores = model(**inputs).logits[0].log_softmax(-1)
            ids = inputs["input_ids"][0]
            expected = sum(float(scores[t - 1, ids[t]]) for t in range(start, len(ids)))
            assert isinstance(likelihood, Likelihood) and likelihood.tokens == len(ids) - start
            assert likelihood.log_probability == pytest.approx(expected, rel=1e-4)


def test_a_prompt_that_is_too_long_or_unreadable_is_a_failure_in_its_own_place(
    tmp_path: Path, image_of: Any
) -> None:
    directory = llava(tmp_path / "llava", max_position_embeddings=40)
    answers = TransformersAnswers(
        load_model(directory, "auto", torch.device("cpu")), load_processor(directory)
    )
    documents = [
        Document([image_of(1), "short"]),
        Document([image_of(2), "long " * 20]),
        Document([Image(b"no picture at all", name="broken.png"), "short"]),
    ]
    good, long, broken = answers.generate(documents, 3)
    assert isinstance(good, Written)
    assert isinstance(long, GenerationFailure) and "context is 40" in long.reason
    assert isinstance(broken, GenerationFailure) and "broken.png" in broken.reason
    ranked = answers.rank(documents, [[Text(" yes", ends_chunk=True)]] * 3)
    assert [isinstance(each, GenerationFailure) for each in ranked] == [False, True, True]


QUICK = [
    "eval.tasks=[existence]", "eval.splits=[test]", "eval.control_styles=[direct]", "eval.shots=[1]", "eval.seeds=[0]",
    "eval.queries=2", "eval.conditions=[standard]", "eval.resamples=10", "eval.max_new_tokens=3",
]  # fmt: skip


def test_a_peer_stands_in_one_table_with_ours_on_the_same_prompts_each_shown_in_its_own_way(
    tmp_path: Path, model: Any, processor: Any
) -> None:
    import flamingo_lite as fl

    fl.save(model, processor, tmp_path / "ours")
    peer = PEERS["qwen2_vl"](tmp_path / "qwen")
    named = f"models={{ours: {tmp_path / 'ours'}, qwen: {peer}}}"
    styles = ["direct", *(f"ranked{'' if rule == 'sum' else f'_{rule}'}" for rule in RANKINGS)]
    output = tmp_path / "both"
    assert cli.main(["eval", named, f"output={output}", *QUICK, f"eval.styles=[{','.join(styles)}]"]) == 0
    results, samples = load_results(output), load_samples(output)
    assert results["failures"]["n_failed"] == 0
    assert results["models"]["qwen"]["run_by"] == "transformers"
    assert {(s["model"], s["rendering"]) for s in samples} == {("ours", "interleaved"), ("qwen", "turns")}
    by_model = {name: [s["prompt_sha"] for s in samples if s["model"] == name] for name in ("ours", "qwen")}
    assert by_model["ours"] == by_model["qwen"]
    assert {s["style"] for s in samples if s["candidates"]} == set(styles[1:])
    ((_, _, differences),) = paired(read_runs([output]), resamples=10)
    assert len(differences) == len(styles)
    other = [{**s, "prompt_sha": "0" * 64} for s in samples if s["model"] == "qwen"]
    with pytest.raises(FlamingoError, match="prompt"):
        compare([s for s in samples if s["model"] == "ours"], other, 10)


def refused(words: list[str], capsys: Any) -> str:
    assert cli.main(["eval", *words, *QUICK, "eval.styles=[direct]"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("flamingo-lite:")]
    return line


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("{path: DIR, hub: a/b}", "names path and hub; expected one of path, hub, endpoint"),
        ("{pth: DIR}", "did you mean 'path'"),
        ("{path: DIR, revision: main}", "a revision belongs to hub=NAME"),
        ("{path: DIR, kind: theirs}", "unknown kind of model 'theirs'"),
        ("{path: DIR, rendering: turn}", "did you mean 'turns'"),
        ("{path: DIR, rendering: turns}", "has no chat template; say rendering: interleaved"),
        ("{path: EMPTY, kind: transformers}", "config.json"),
        ("{endpoint: sk-abcdef}", "the key stays in the environment"),
        ("{endpoint: m, budget: lots}", "budget is 'lots'; expected a whole number"),
        ("{path: DIR, temperature: 0.5}", "names temperature, which is of models behind an endpoint"),
        ("{endpoint: m, dtype: float16}", "names dtype, which is of models that run here"),
        ("{path: DIR, dtype: float16}", "names a dtype, and our models run in that of their files"),
        ("[DIR]", "expected a directory, or {hub: NAME}"),
    ],
)
def test_what_is_wrong_with_a_model_is_one_line(said: str, words: str, tmp_path: Path, capsys: Any) -> None:
    directory = tmp_path / "llava"
    if "DIR, rendering: turns" in said:
        llava(directory, chats=False)
        said = said.replace("}", ", kind: transformers}")
    (tmp_path / "empty").mkdir()
    said = said.replace("DIR", str(directory)).replace("EMPTY", str(tmp_path / "empty"))
    assert words in refused([f"models={{a: {said}}}", f"output={tmp_path / 'out'}"], capsys)


@pytest.mark.parametrize("otherwise", [{"kind": "auto"}, {"dtype": "bfloat16"}])
def test_the_same_weights_run_otherwise_are_another_evaluation(
    otherwise: dict[str, str], tmp_path: Path
) -> None:
    directory = llava(tmp_path / "llava")
    said = {"path": str(directory), "kind": "transformers", "rendering": "interleaved"}
    identities = [
        identity_of(subjects_of(Config(models={"a": {**said, **change}}), 1), EvaluationConfig())
        for change in ({}, otherwise)
    ]
    assert identities[0] != identities[1]


@pytest.mark.parametrize(
    ("asked", "of_ours", "of_theirs"),
    [(None, None, "turns"), ("interleaved", None, "interleaved"), ("one_turn", None, "one_turn")],
)
def test_a_rendering_that_is_said_holds_for_models_with_a_chat_template(
    asked: str | None, of_ours: str | None, of_theirs: str, tmp_path: Path, model: Any, processor: Any
) -> None:
    save(model, processor, tmp_path / "ours")
    named = {
        "ours": str(tmp_path / "ours"),
        "theirs": {"path": str(llava(tmp_path / "llava")), "kind": "transformers"},
    }
    config = Config(models=named, eval=EvaluationConfig(rendering=asked))
    assert [each.rendering for each in subjects_of(config, 1)] == [of_ours, of_theirs]


def test_our_models_stay_what_they_were_without_a_rendering() -> None:
    said, unsaid = (EvaluationConfig(rendering=rendering) for rendering in ("interleaved", None))
    assert identity_of([], said) == identity_of([], unsaid)
    assert identity_of([], unsaid)["eval"]["rendering"] == "interleaved"
    assert settings(said) == settings(unsaid)


def test_a_hub_model_without_a_network_is_one_line(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    line = refused(["models={a: {hub: someone/no-such-model, revision: abc}}", f"output={tmp_path}"], capsys)
    assert "cannot fetch someone/no-such-model at abc" in line


def test_formats_that_we_read_stay_ours_unless_transformers_is_asked_for(tmp_path: Path) -> None:
    assert not is_of_transformers(llava(tmp_path / "llava"))
    assert is_of_transformers(PEERS["qwen2_vl"](tmp_path / "qwen"))
