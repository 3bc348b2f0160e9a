"""`mmcd evaluate`: measures a model on labelled data."""

from pathlib import Path
from typing import Annotated

import typer

from mmcd.commands.terminal import DeviceOption, JsonFlag, PrecisionOption, ProgressBar, print_json, report


def evaluate(
    model: Annotated[str, typer.Option(help="Name or card; for levir also a checkpoint of reference system 1, .pth.")],
    dataset: Annotated[str, typer.Option(help="ombria, bright or levir.")],
    root: Annotated[Path, typer.Option(help="Folder of the data set.")],
    event: Annotated[str | None, typer.Option(help="One event of the data set.")] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="train or test; levir also has val, BRIGHT val, holdout and unsupervised, all standard tiles but val."
        ),
    ] = None,
    lists: Annotated[
        Path | None, typer.Option(help="Folder of BRIGHT's split lists; `splits` in its folder when left out.")
    ] = None,
    protocol: Annotated[str, typer.Option(help="Which of BRIGHT's lists: standard_ML, dfc25 or few_shot.")] = (
        "standard_ML"
    ),
    hold_out: Annotated[
        str | None,
        typer.Option(
            help="BRIGHT event that the model was trained without: all its tiles are scored. "
            "`all` measures one card an event, with {event} in --model's path."
        ),
    ] = None,
    one_shot: Annotated[
        bool, typer.Option("--one-shot", help="The model saw one train and one val tile of that event.")
    ] = False,
    scores: Annotated[
        Path | None, typer.Option(help="Also write one score GeoTIFF a tile into this folder, and one of classes.")
    ] = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    backend: Annotated[str, typer.Option(help="torch, onnx, openvino or auto; cards are measured in torch.")] = "torch",
    json_output: JsonFlag = False,
) -> None:
    """Measure a model on labelled data at its card's threshold, beside trivial baselines or published tables."""
    from mmcd.services.evaluate import EvaluateRequest
    from mmcd.services.evaluate import evaluate as run_evaluation

    request = EvaluateRequest.checked(
        model=model,
        dataset=dataset,
        root=root,
        event=event,
        split=split,
        lists=lists,
        protocol=protocol,
        hold_out=hold_out,
        one_shot=one_shot,
        scores=scores,
        device=device,
        precision=precision,
        backend=backend,
    )
    with ProgressBar() as progress:
        result = run_evaluation(request, progress)
    title = f"{model} on {dataset} {hold_out or event or split or ''}"
    if json_output:
        print_json(result)
    elif request.dataset == "bright":
        from mmcd.commands.bright_report import report_bright

        report_bright(title, result)
    else:
        report(title, result)
