"""Writes our tasks for lmms-eval, so that any of its models is asked what our own runner asks, and scored alike.

  flamingo-lite eval lmms --to tasks eval.tasks=[operator_induction] eval.shots=[0,4] eval.queries=100
  HF_HUB_OFFLINE=1 python -m lmms_eval --include_path tasks --tasks flamingo_lite \\
      --model flamingo_lite --model_args pretrained=outputs/mine/flamingo --batch_size 16

The settings are those of flamingo-lite eval. Each task x split x style x condition x shots becomes a task of lmms-eval,
under every seed; the tag flamingo_lite names all of them. To choose demonstrations by similar images, name an encoder with
eval.image_encoder. Nothing is fetched: prompts and pictures lie in the folder,
and scores are computed by flamingo_lite, which must be installed beside lmms-eval."""

import argparse
from pathlib import Path

from flamingo_lite.commands.common import CONFIG_HELP
from flamingo_lite.commands.subjects import NAME_ONE, load_on_device
from flamingo_lite.errors import FlamingoError

SUMMARY = "write our tasks for lmms-eval"
USAGE = "KEY=VALUE"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=CONFIG_HELP)
    parser.add_argument("--to", type=Path, metavar="DIR", help="the folder to write")


def run(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from flamingo_lite.commands.selectors import selectors_of
    from flamingo_lite.config import load_config
    from flamingo_lite.evaluation.lmms.export import TAG, write_tasks
    from flamingo_lite.training.display import ProgressDisplay
    from flamingo_lite.training.ranks import Ranks

    if arguments.to is None:
        raise FlamingoError("--to is missing; expected the folder to write")
    config = load_config(arguments.overrides)
    if config.eval.needs_own_encoder:
        raise FlamingoError(
            f"no model is at hand by whose encoder demonstrations could be chosen; {NAME_ONE}"
        )
    with ProgressDisplay("writing tasks", 0, Console()) as display:
        selectors = selectors_of(config, Ranks(), display, load_on_device)
        names = write_tasks(config.eval, arguments.to, selectors)
    print(f"{len(names)} tasks in {arguments.to}, all of them: --include_path {arguments.to} --tasks {TAG}")
