"""W&B's workspace and report as code: the panels of `evaluation/panels.py`, laid out for a project.

wandb-workspaces makes both out of plain objects; saved, they are pages of the project, and without a login the same
pages are a file of JSON.
"""

import json
import re
from collections.abc import Iterable
from typing import Any

from flamingo_lite.errors import FlamingoError
from flamingo_lite.evaluation.panels import IMAGES, SAMPLES, SECTIONS, Panel

NAME = "flamingo_lite"
SMOOTHED = ("loss", "loss by source", "gradient norm")
"""Panels whose lines jump from step to step."""


def workspace(entity: str, project: str) -> Any:
    """A workspace of one section per group of panels; runs of one experiment stand together."""
    workspaces, reports = _library()
    sections = [
        workspaces.Section(
            name=name, panels=[line_plot(reports, panel) for panel in panels], is_open=number < 3
        )
        for number, (name, panels) in enumerate(SECTIONS.items())
    ]
    sections.append(workspaces.Section(name="Samples", panels=sample_panels(reports), is_open=True))
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=sections,
        runset_settings=workspaces.RunsetSettings(groupby=[workspaces.Metric("Group")]),
    )


def report(entity: str, project: str) -> Any:
    """The same panels with what they say beside them, to be read from top to bottom."""
    _, reports = _library()
    blocks: list[Any] = [reports.TableOfContents()]
    for name, panels in SECTIONS.items():
        about = [f"{panel.title}: {panel.about}{_needs(panel)}" for panel in panels]
        blocks += [reports.H1(name), reports.UnorderedList(items=about)]
        blocks.append(_grid(reports, entity, project, [line_plot(reports, panel) for panel in panels]))
    blocks += [
        reports.H1("Samples"),
        reports.P("Prompts of the training data and what the model writes for them."),
    ]
    blocks.append(_grid(reports, entity, project, sample_panels(reports)))
    return reports.Report(
        entity=entity,
        project=project,
        title=NAME,
        description="What training logs, and what it says.",
        blocks=blocks,
        width="fluid",
    )


def line_plot(reports: Any, panel: Panel) -> Any:
    """One line per column: columns by name, or by W&B's pattern where the panel has patterns."""
    settings: dict[str, Any] = {"title": panel.title, "x": "Step"}
    if panel.is_logarithmic:
        settings["log_y"] = True
    if panel.title in SMOOTHED:
        settings |= {"smoothing_type": "average", "smoothing_factor": 5, "smoothing_show_original": True}
    if any("*" in column for column in panel.columns):
        return reports.LinePlot(**settings, metric_regex=metric_regex(panel.columns))
    return reports.LinePlot(**settings, y=list(panel.columns))


def metric_regex(columns: Iterable[str]) -> str:
    """A regular expression that W&B (JavaScript) understands, of what the patterns match."""
    parts = (".*".join(map(re.escape, column.split("*"))) for column in columns)
    return f"^({'|'.join(parts)})$"


def sample_panels(reports: Any) -> list[Any]:
    """The table of samples over time, and the images of its prompts."""
    return [
        reports.WeavePanelSummaryTable(table_name=SAMPLES),
        reports.MediaBrowser(title="images of the prompts", media_keys=[IMAGES]),
    ]


def specification(entity: str, project: str) -> str:
    """Both as JSON, as they would be sent; identifiers inside them are new each time."""
    # Without an entity, a report's runs are those of the project that it is pushed to: naming one asks the server.
    models = {"workspace": workspace(entity, project), "report": report("", project)}
    return json.dumps({name: _plain(model) for name, model in models.items()}, indent=1) + "\n"


def push(entity: str, project: str) -> list[str]:
    """Saves both, and returns their addresses. Errors: `FlamingoError` where W&B refuses."""
    try:
        return [page(entity, project).save().url for page in (workspace, report)]
    except Exception as error:  # the library raises bare Exceptions, requests' and wandb's errors
        raise FlamingoError(
            f"W&B does not take the dashboard of {entity}/{project} ({error}); is that an entity and a project of yours?"
        ) from error


def _grid(reports: Any, entity: str, project: str, panels: list[Any]) -> Any:
    runs = reports.Runset(project=project, entity=entity) if entity else reports.Runset(project=project)
    for number, panel in enumerate(panels):
        panel.layout = reports.Layout(x=8 * (number % 3), y=6 * (number // 3), w=8, h=6)
    return reports.PanelGrid(runsets=[runs], panels=panels)


def _needs(panel: Panel) -> str:
    return f" ({panel.needs})" if panel.needs else ""


def _plain(page: Any) -> Any:
    return json.loads(page._to_model().model_dump_json(by_alias=True, exclude_none=True))


def _library() -> tuple[Any, Any]:
    try:
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise FlamingoError(
            "the dashboard needs wandb-workspaces; pip install 'flamingo_lite[dashboard]' brings it"
        ) from error
    return workspaces, reports
