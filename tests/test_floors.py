"""Imports go downward only: the floors of the house, lowest first. A package may import from lower floors and itself."""

import ast
import pathlib

import pytest

import flamingo_lite

ROOT = pathlib.Path(flamingo_lite.__file__).parent
FLOORS = (
    ("errors", "names", "figures", "exif", "document", "image_transform", "batch", "teacher"),
    ("nn", "text"),
    ("processing",),
    ("models", "data"),
    ("checkpoints", "generation"),
    ("evaluation",),
    ("training",),
    ("config",),
    ("launchers",),
    ("commands",),
    ("cli",),
    ("registration",),
    ("__main__", "__init__"),
)
BOTTOM_ORDER = {
    "errors": 0,
    "names": 1,
    "figures": 1,
    "exif": 1,
    "document": 2,
    "image_transform": 3,
    "batch": 3,
    "teacher": 2,
}
"""The lowest floor has steps of its own."""
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
MODULES = sorted(ROOT.rglob("*.py"))


def _part(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def _imported(path: pathlib.Path) -> set[str]:
    """The parts of this package that a module imports anywhere in it, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides its floor"
            names.add(node.module or "")
            if node.module == "flamingo_lite":
                names |= {f"flamingo_lite.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("flamingo_lite.")}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_downward_only(path):
    here = _part(path)
    assert here in FLOOR, f"{path} is on no floor: give it one in this test and in the design"
    for there in _imported(path) - {here}:
        lower = (FLOOR[there], BOTTOM_ORDER.get(there, 0)) < (FLOOR[here], BOTTOM_ORDER.get(here, 0))
        if here == "__init__":
            continue  # names resolve lazily when touched
        assert lower, f"{path.relative_to(ROOT)} ({here}) imports {there}, which is not below it"


def test_the_walk_sees_an_arrow_that_goes_up(tmp_path):
    module = tmp_path / "module.py"
    module.write_text(
        "def f():\n    from flamingo_lite.training import stages\n    import flamingo_lite.cli\n"
    )
    assert _imported(module) == {"training", "cli"}


def test_nn_is_pure_torch():
    for path in (ROOT / "nn").glob("*.py"):
        roots = {
            (node.module if isinstance(node, ast.ImportFrom) else alias.name).split(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        assert "transformers" not in roots, f"{path} imports transformers"
