"""`mmcd evaluate`: measures a model on labelled data."""

from pathlib import Path
from typing import Annotated

import typer

from mmcd.commands.terminal import DeviceOption, JsonFlag, PrecisionOption, ProgressBar, print_json, report


def evaluate(
    model: Annotated[str, typer.Option(help="Name or card.")],
    dataset: Annotated[str, typer.Option(help="ombria.")],
    root: Annotated[Path, typer.Option(help="Folder of the data set.")],
    event: Annotated[str | None, typer.Option(help="One event of the data set.")] = None,
    split: Annotated[str | None, typer.Option(help="train or test, where the data set has them.")] = None,
    scores: Annotated[Path | None, typer.Option(help="Also write one score GeoTIFF a tile into this folder.")] = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    backend: Annotated[str, typer.Option(help="torch, onnx, openvino or auto; cards are measured in torch.")] = "torch",
    json_output: JsonFlag = False,
) -> None:
    """Measure a model on labelled data at the threshold of its card, beside the trivial baselines."""
    from mmcd.services.evaluate import EvaluateRequest
    from mmcd.services.evaluate import evaluate as run_evaluation

    request = EvaluateRequest.checked(
        model=model,
        dataset=dataset,
        root=root,
        event=event,
        split=split,
        scores=scores,
        device=device,
        precision=precision,
        backend=backend,
    )
    with ProgressBar() as progress:
        result = run_evaluation(request, progress)
    if json_output:
        print_json(result)
    else:
        report(f"{model} on {dataset} {event or split or ''}", result)
