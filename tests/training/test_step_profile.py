"""A profiled step: its arithmetic is all there, what is kept is what is kept, and the flame chart adds up."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from flamingo_lite.config import load_config
from flamingo_lite.models.policy import BLOCKS, CONNECTOR, LANGUAGE, VISION
from flamingo_lite.training.profile_page import LEAST, Node, flame, page, rows
from flamingo_lite.training.step_profile import (
    BACKWARD,
    DATA,
    FORWARD,
    LOSS,
    OPTIMIZER,
    STEPS,
    KeptBytes,
    PartCost,
    Step,
    StepProfile,
    kept_bytes,
    modules_by_part,
    parts_with_costs,
    timed,
)


@pytest.fixture(scope="module")
def step() -> Step:
    return Step(load_config(["model=flamingo_tiny", "data.families={scenes: 1}"]), rows=2, device="cpu")


def test_all_arithmetic_of_a_step_belongs_to_one_part(step: Step, torchs_counter: FlopCounterMode) -> None:
    clock, _ = timed(step)
    with torchs_counter:
        step.run()
    assert torchs_counter.get_total_flops() > 0
    assert sum(clock.flops.values()) == STEPS * torchs_counter.get_total_flops()


def test_muons_products_are_the_optimizers(step: Step) -> None:
    settings = ["model=flamingo_tiny", "data.families={scenes: 1}", "stage.optimizer.muon_factor=4"]
    by_muon, by_adamw = timed(Step(load_config(settings), rows=2, device="cpu"))[0], timed(step)[0]
    assert by_muon.flops[OPTIMIZER] > 0 == by_adamw.flops[OPTIMIZER]
    assert by_muon.flops[None] == by_adamw.flops[None] > 0, "the head and the loss"


def test_every_part_has_its_costs(step: Step) -> None:
    clock, _ = timed(step)
    parts = parts_with_costs(step, clock, kept_bytes(step), (1e9, 1e9))
    assert list(parts) == [DATA, VISION, CONNECTOR, BLOCKS, LANGUAGE, LOSS, OPTIMIZER]
    assert BACKWARD not in parts[VISION].seconds, "a frozen encoder has no backward pass"
    assert all(BACKWARD in parts[name].seconds for name in (CONNECTOR, BLOCKS, LANGUAGE))
    assert parts[CONNECTOR].weights == sum(p.nbytes for p in step.model.connector.parameters())
    # A moment of each kind, and a step counter for each tensor.
    trained = [p for p in step.model.parameters() if p.requires_grad]
    assert parts[OPTIMIZER].kept == sum(2 * p.nbytes + 4 for p in trained)


def test_kept_is_what_the_backward_pass_needs_and_no_scratch() -> None:
    inner, outer = nn.Sequential(nn.Linear(8, 16), nn.GELU()), nn.Linear(16, 4)
    x = torch.randn(5, 8)
    live = KeptBytes([x, *inner.parameters(), *outer.parameters()])
    inner.register_forward_pre_hook(lambda *_: live.begin("inner"))
    inner.register_forward_hook(lambda *_: live.end())
    with live:
        out = outer(inner(x))
        torch.exp(out)  # used by nobody
        live.note()
    # The linear's output for the GELU, and the GELU's for the linear after it; outside, the result.
    assert live.kept == {"inner": 2 * 5 * 16 * 4, LOSS: 5 * 4 * 4}


def test_blocks_inside_the_language_model_are_counted_once(step: Step) -> None:
    parts = modules_by_part(step.model)
    live = kept_bytes(step)
    assert sum(live.kept.values()) == live._before and live.kept[BLOCKS] > 0
    assert set(parts.values()) == {VISION, CONNECTOR, BLOCKS, LANGUAGE}


PATHS = st.dictionaries(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(tuple),
    st.floats(1e-6, 1.0),
    min_size=1,
    max_size=12,
)


def _nodes(node: Node) -> list[Node]:
    return [node, *(inner for child in node.children for inner in _nodes(child))]


@given(PATHS)
def test_a_bar_is_as_long_as_what_is_in_it(paths: dict[tuple[str, ...], float]) -> None:
    root = flame(paths, "all")
    assert root.seconds == pytest.approx(sum(paths.values())) and root.share == pytest.approx(1)
    for node in _nodes(root):
        assert node.share >= LEAST
        inside = sum(child.share for child in node.children) + node.hidden
        assert not node.children or inside == pytest.approx(node.share)
        assert [c.seconds for c in node.children] == sorted((c.seconds for c in node.children), reverse=True)


def small_profile() -> StepProfile:
    parts = {
        DATA: PartCost({FORWARD: 0.1}, limit=0.05),
        LANGUAGE: PartCost({FORWARD: 0.2, BACKWARD: 0.4}, weights=10**6, kept=2 * 10**6, limit=0.3),
        OPTIMIZER: PartCost({OPTIMIZER: 0.2}, limit=0.1),
    }
    paths = {
        (FORWARD, LANGUAGE, "Linear", "mm"): 0.2,
        (BACKWARD, LANGUAGE, "mm"): 0.4,
        (OPTIMIZER, "add"): 0.2,
    }
    return StepProfile(parts, 0.8, 10, 5, paths, 1e9, 1e9, 2, 3, 4, 0.5)


def test_the_table_adds_up_without_the_data() -> None:
    data, language, optimizer, sums = rows(small_profile())
    assert data == [DATA, "100.0", "", "12%", "", "0.0", "50%"]
    assert language == [LANGUAGE, "200.0", "400.0", "75%", "1.0", "2.0", "50%"]
    assert optimizer[1:4] == ["200.0", "", "25%"]
    assert sums == ["all but data", "400.0", "400.0", "100%", "1.0", "2.0", "50%"]


class Tags(HTMLParser):
    """The elements of a page, and that each is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_shows_every_bar_runs_nothing_and_escapes_its_title() -> None:
    written = page(small_profile(), "<script>x</script>").decode()
    tags = Tags()
    tags.feed(written)
    assert not tags.open and "script" not in tags.seen and "default-src 'none'" in written
    for node in _nodes(flame(small_profile().paths, "a step")):
        assert f'title="{node.name}: {1e3 * node.seconds:.2f} ms' in written
    # Growth factors that sum to less than 1 would leave a part of their row empty.
    assert all(float(growth) >= 1 for growth in re.findall(r"flex: ([\d.]+)", written))
