"""`mmcd train`: trains models."""

from pathlib import Path
from typing import Annotated

import typer

from mmcd.commands.terminal import JsonFlag, ProgressBar, print_json, report

train_app = typer.Typer(help="Train models.", no_args_is_help=True)


@train_app.command("start")
def train_start(
    config: Annotated[Path, typer.Option(help="YAML file, see configs/.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE over the file, may be repeated.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Random weights where the file asks for pretrained ones.")
    ] = False,
    json_output: JsonFlag = False,
) -> None:
    """Train a model as a configuration says."""
    from mmcd.config import parse_overrides
    from mmcd.services.train import TrainRequest, train

    request = TrainRequest(
        config=config, overrides=parse_overrides(set_ or []), resume=resume, from_scratch=from_scratch
    )
    with ProgressBar() as progress:
        result = train(request, progress)
    if json_output:
        print_json(result.to_dict())
    else:
        report(f"Trained {request.config.stem}", result.to_dict())
