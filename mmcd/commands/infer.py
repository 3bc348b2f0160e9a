"""`mmcd infer`: scores image pairs."""

from pathlib import Path
from typing import Annotated

import typer

from mmcd.commands.terminal import (
    BackendOption,
    DeviceOption,
    JsonFlag,
    PrecisionOption,
    ProgressBar,
    escaped,
    messages,
    print_json,
    report,
)

infer_app = typer.Typer(help="Score image pairs.", no_args_is_help=True)


@infer_app.command("predict")
def infer_predict(
    pre: Annotated[Path | None, typer.Argument(help="Optical image before.")] = None,
    post: Annotated[Path | None, typer.Argument(help="Radar image after.")] = None,
    *,
    out: Annotated[
        Path,
        typer.Option(help="Folder for score.tif, mask.tif, item.json, manifest.json (and building_probability.tif)."),
    ],
    scene: Annotated[str | None, typer.Option(help="Id of a scene, instead of two files.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Name or card; chosen by bands, GSD and sensor if left out.")
    ] = None,
    region: Annotated[str | None, typer.Option(help="W,S,E,N in degrees, or a GeoJSON or GeoPackage.")] = None,
    tile: Annotated[int, typer.Option(help="Pixels worked on between two saves; never changes the result.")] = 2048,
    threshold: Annotated[float | None, typer.Option(help="Probability from which change is reported.")] = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    backend: BackendOption = "auto",
    align: Annotated[
        bool, typer.Option("--align/--no-align", help="Move the image after back where it is displaced, up to 16 px.")
    ] = False,
    adapt: Annotated[
        bool, typer.Option("--adapt/--no-adapt", help="Adapt the model to the scene's own brightness and texture.")
    ] = False,
    adapt_weight: Annotated[
        float | None, typer.Option(help="Weight of the scene in --adapt, 0 (none) to 1; a small one if left out.")
    ] = None,
    json_output: JsonFlag = False,
) -> None:
    """Score a pair of images: probability of change and change mask as Cloud Optimized GeoTIFFs."""
    from mmcd.services.inference import PredictRequest, predict

    request = PredictRequest.checked(
        pre=pre,
        post=post,
        scene=scene,
        out=out,
        model=model,
        region=region,
        tile=tile,
        threshold=threshold,
        device=device,
        precision=precision,
        backend=backend,
        align=align,
        adapt=adapt,
        **({} if adapt_weight is None else {"adapt_weight": adapt_weight}),
    )
    with ProgressBar() as progress:
        result = predict(request, progress)
    for warning in result.warnings:
        messages.print(f"[yellow]warning:[/yellow] {escaped(warning)}", soft_wrap=True)
    if json_output:
        print_json(result.to_dict())
    else:
        report("Change found", result.summary())
