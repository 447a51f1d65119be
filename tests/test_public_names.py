"""The public names: every one resolves, and none costs torch before it is touched."""

from __future__ import annotations

import subprocess
import sys

import pytest

import flamingo_lite


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, flamingo_lite; dir(flamingo_lite); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", flamingo_lite.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(flamingo_lite, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'generat'"):
        flamingo_lite.generat  # noqa: B018
