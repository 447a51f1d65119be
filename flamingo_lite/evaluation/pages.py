"""What pages share: everything that comes from a model or a file is escaped, and nothing is loaded from elsewhere."""

from pathlib import Path
from typing import Any, cast

import jinja2
from matplotlib.figure import Figure

from flamingo_lite.data.pages import data_uri, templates_of
from flamingo_lite.evaluation import plots
from flamingo_lite.evaluation.findings import interval, percent
from flamingo_lite.evaluation.results import write_atomically
from flamingo_lite.evaluation.tasks import describe_split, spoken


def page_environment() -> jinja2.Environment:
    """The templates of `evaluation/templates`."""
    environment = templates_of("flamingo_lite.evaluation")
    environment.filters["percent"] = percent
    environment.filters["words"] = lambda name: spoken(str(name))
    names = cast(dict[str, Any], environment.globals)  # typed as what jinja puts there
    names.update(interval=interval, describe_split=describe_split)
    return environment


def saved(figure: Figure, path: Path) -> str:
    """Writes the figure and returns it as a data URI: what is on the page is what is in the folder."""
    data = plots.png(figure)
    write_atomically(path, data)
    return data_uri(data)
