"""What the commands share: paths are printed as they are."""

import io

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from flamingo_lite.commands.common import bold


@given(st.text("ab/.=,[] ", min_size=1))
def test_a_path_is_printed_whole_whatever_brackets_stand_in_it(path: str) -> None:
    printed = io.StringIO()
    Console(file=printed, width=80).print(f"in {bold(path)}, all", highlight=False, soft_wrap=True)
    assert printed.getvalue() == f"in {path}, all\n"
