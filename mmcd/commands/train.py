"""`mmcd train`: trains models."""

from pathlib import Path
from typing import Annotated

import typer

from mmcd.commands.terminal import DeviceOption, JsonFlag, PrecisionOption, ProgressBar, print_json, report, warn

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


@train_app.command("list")
def train_list(json_output: JsonFlag = False) -> None:
    """List the trainings of the workspace, the newest first."""
    from mmcd.services.training_runs import list_trainings

    runs = [run.to_dict() for run in list_trainings().values()]
    if json_output:
        print_json({"trainings": runs})
    for run in () if json_output else runs:
        figure = ", ".join(f"{name} {value:.4g}" for name, value in run["figure"].items() if value is not None)
        typer.echo(f"{run['name']}: {run['state']}{', ' + figure if figure else ''}")


@train_app.command("register")
def train_register(
    run: Annotated[str, typer.Argument(help="Name of a finished run, see `mmcd train list`.")],
    name: Annotated[str | None, typer.Option(help="Name of the model; the run's when left out.")] = None,
    version: Annotated[str | None, typer.Option(help="Its version; the card's when left out.")] = None,
    json_output: JsonFlag = False,
) -> None:
    """Copy the weights and the card of a run into the workspace's weights, never over others."""
    from mmcd.services.training_runs import find_training, register_weights

    path, reference = register_weights(find_training(run), name, version)
    if json_output:
        print_json({"card": str(path), "model": reference})
    else:
        report(f"Kept {run}", {"model": reference, "card": str(path)})


@train_app.command("plot")
def train_plot(
    run: Annotated[str | None, typer.Argument(help="Name or folder of a finished run; or give --model.")] = None,
    *,
    root: Annotated[Path, typer.Option(help="Folder of the data set.")],
    model: Annotated[
        str | None, typer.Option(help="Name or card, or a checkpoint of reference system 1, .pth, instead of a run.")
    ] = None,
    dataset: Annotated[str, typer.Option(help="Layout of the data set: levir.")] = "levir",
    split: Annotated[str | None, typer.Option(help="train, val or test; the first pairs of all if left out.")] = None,
    samples: Annotated[int, typer.Option(help="Pairs to draw, the first ones; no others are read.")] = 10,
    out: Annotated[Path, typer.Option(help="Picture to write.")] = Path("results.png"),
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    json_output: JsonFlag = False,
) -> None:
    """Draw what a model says of the first pairs: both images, the label, and the prediction above its threshold."""
    from mmcd.services.plot_predictions import PlotRequest, plot_predictions

    request = PlotRequest.checked(
        run=run,
        model=model,
        dataset=dataset,
        root=root,
        split=split,
        samples=samples,
        out=out,
        device=device,
        precision=precision,
    )
    with ProgressBar() as progress:
        result = plot_predictions(request, progress)
    warn([f"left out: {line}" for line in result.warnings])
    if json_output:
        print_json(result.to_dict())
    else:
        report(f"Drew {len(result.pairs)} pairs", result.summary())
