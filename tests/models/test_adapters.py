"""PEFT adapters on a joined model: on the language model, on the gated blocks, on both, beside a trained join."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import flamingo_lite as fl
from flamingo_lite.batch import Batch
from flamingo_lite.document import Document, Image
from flamingo_lite.models.build import build
from flamingo_lite.models.model import VisionLanguageModel
from flamingo_lite.models.policy import apply_policy
from flamingo_lite.processing import VisionLanguageProcessor

LANGUAGE = ["q_proj", "v_proj"]
BLOCKS = r".*\.cross_attention\.attention\.(to_q|to_kv|to_out)"
BOTH = r".*\.(q_proj|v_proj|cross_attention\.attention\.(to_q|to_kv|to_out))"

CASES = {
    # fusion, target_modules, modules_to_save, parts of the names that may move
    "language": ("cross_attention", LANGUAGE, None, ("lora_",)),
    "language, the join trained": (
        "cross_attention",
        LANGUAGE,
        ["connector", "cross_attention"],
        ("lora_", ".connector.", ".cross_attention."),
    ),
    "blocks": ("cross_attention", BLOCKS, None, ("lora_",)),
    "both": ("cross_attention", BOTH, ["connector"], ("lora_", ".connector.")),
    "language under a prefix": ("prefix", LANGUAGE, ["connector"], ("lora_", ".connector.")),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Any:
    return CASES[request.param]


@pytest.fixture
def fresh(
    case: Any,
    model_config: dict[str, Any],
    prefix_config: dict[str, Any],
    set_gates: Callable[[VisionLanguageModel, float], VisionLanguageModel],
) -> Callable[[], VisionLanguageModel]:
    """The same base model, as often as it is asked for."""
    config = {"cross_attention": model_config, "prefix": prefix_config}[case[0]]

    def make() -> VisionLanguageModel:
        torch.manual_seed(2)
        return set_gates(build(config), 0.7).eval()

    return make


@pytest.fixture
def batch(
    case: Any,
    processor: VisionLanguageProcessor,
    prefix_processor: VisionLanguageProcessor,
    image_of: Callable[[int], Image],
) -> Batch:
    chosen = {"cross_attention": processor, "prefix": prefix_processor}[case[0]]
    return chosen([Document([image_of(0), "ab", image_of(1)]), Document(["no image"])], complete=True)


def trained(model: VisionLanguageModel, case: Any, batch: Batch) -> PeftModel:
    """Two steps of training: the first moves only the half of an adapter that starts at 0."""
    torch.manual_seed(3)
    adapted: Any = get_peft_model(model, LoraConfig(r=4, target_modules=case[1], modules_to_save=case[2]))
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        adapted.train()(**batch).loss.backward()
        optimizer.step()
    return adapted.eval()


def logits(model: Any, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch).logits


def test_adapters_and_what_is_to_be_saved_move_and_nothing_else(
    fresh: Callable[[], VisionLanguageModel], case: Any, batch: Batch
) -> None:
    base = {name: parameter.clone() for name, parameter in fresh().named_parameters()}
    adapted = trained(fresh(), case, batch)
    moved = set()
    for name, parameter in adapted.named_parameters():
        # A module to be saved is there twice: the base's own stays as it was.
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
        plain = plain.replace(".original_module", "").replace(".modules_to_save.default", "")
        if plain not in base or not torch.equal(parameter, base[plain]):
            moved.add(name)
            assert any(part in name for part in case[3]), name
            assert "original_module" not in name and "base_layer" not in name, name
    assert all(any(part in name for name in moved) for part in case[3])


def test_saved_adapters_on_a_fresh_base_give_equal_logits(
    fresh: Callable[[], VisionLanguageModel], case: Any, batch: Batch, tmp_path: Path
) -> None:
    adapted = trained(fresh(), case, batch)
    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(fresh(), str(tmp_path)).eval()
    assert torch.equal(logits(loaded, batch), logits(adapted, batch))
    assert not torch.allclose(logits(loaded, batch), logits(fresh(), batch), atol=1e-3)


def test_merged_adapters_give_the_same_logits_in_a_plain_model(
    fresh: Callable[[], VisionLanguageModel], case: Any, batch: Batch, tmp_path: Path
) -> None:
    adapted = trained(fresh(), case, batch)
    expected = logits(adapted, batch)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(logits(merged, batch), expected, atol=1e-5, rtol=1e-5)
    assert {name for name, _ in merged.named_parameters()} == {n for n, _ in fresh().named_parameters()}
    merged.save_pretrained(tmp_path)
    loaded = VisionLanguageModel.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(loaded, batch), logits(merged, batch))


def test_an_adapted_model_generates_as_its_merged_self(
    fresh: Callable[[], VisionLanguageModel], case: Any, batch: Batch
) -> None:
    adapted = trained(fresh(), case, batch)
    prompt = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values", "media_index")}
    options = {"max_new_tokens": 3, "do_sample": False}
    written = adapted.generate(**prompt, **options)
    assert torch.equal(adapted.merge_and_unload().generate(**prompt, **options), written)


def test_a_policy_can_still_be_read_off_an_adapted_model(
    fresh: Callable[[], VisionLanguageModel], case: Any, batch: Batch
) -> None:
    adapted: Any = get_peft_model(fresh(), LoraConfig(r=4, target_modules=case[1], modules_to_save=case[2]))
    rows = apply_policy(adapted, {"*": "frozen", "*.lora_*": "full"})
    by_pattern = {row.pattern: row.tensors for row in rows}
    lora = [name for name, p in adapted.named_parameters() if ".lora_" in name and p.requires_grad]
    assert by_pattern["*.lora_*"] == len(lora) > 0
    assert sum(row.tensors for row in rows) == len(list(adapted.parameters()))


def test_the_example_in_the_docs_runs(
    model: VisionLanguageModel,
    processor: VisionLanguageProcessor,
    image_of: Callable[[int], Image],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page = Path(__file__).parents[2] / "docs" / "ecosystem.md"
    example = page.read_text().split("## Adapters")[1].split("```python")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {
        "fl": fl,
        "model": model,
        "batch": processor([Document([image_of(0), "ab"])], complete=True),
        "directory": fl.save(model, processor, tmp_path / "model"),
    }
    exec(compile(example, str(page), "exec"), names)  # noqa: S102
    assert type(names["merged"]) is VisionLanguageModel
    assert any(p.grad is not None for n, p in model.named_parameters() if "connector" in n)
