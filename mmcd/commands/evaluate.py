"""`mmcd evaluate`: measures a model or a pretrained trunk on labelled data."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mmcd.commands.terminal import DeviceOption, JsonFlag, PrecisionOption, ProgressBar, print_json, report

ModelOption = Annotated[
    str,
    typer.Option(
        help="Name or card; for levir also a checkpoint of reference system 1, .pth. For a trunk's tasks name or card "
        "of the trunk, random or imagenet."
    ),
]
DatasetOption = Annotated[
    str,
    typer.Option(help="ombria, bright or levir; for pretrained trunks eurosat, bigearthnet, oscd, pastis or gid."),
]
SplitOption = Annotated[
    str | None,
    typer.Option(
        help="train or test; levir also has val, BRIGHT val, holdout and unsupervised, all standard tiles but val."
    ),
]
ListsOption = Annotated[
    Path | None, typer.Option(help="Folder of BRIGHT's split lists; `splits` in its folder when left out.")
]
ProtocolOption = Annotated[str, typer.Option(help="Which of BRIGHT's lists: standard_ML, dfc25 or few_shot.")]
HoldOutOption = Annotated[
    str | None,
    typer.Option(
        help="BRIGHT event that the model was trained without: all its tiles are scored. "
        "`all` measures one card an event, with {event} in --model's path."
    ),
]
OneShotFlag = Annotated[
    bool, typer.Option("--one-shot", help="The model saw one train and one val tile of that event.")
]
ScoresOption = Annotated[
    Path | None, typer.Option(help="Also write one score GeoTIFF a tile into this folder, and one of classes.")
]
BackendOption = Annotated[str, typer.Option(help="torch, onnx, openvino or auto; cards are measured in torch.")]
SeedsOption = Annotated[
    int | None, typer.Option(help="How often a trunk's task is trained and measured; 3 when left out.")
]
ConfigOption = Annotated[
    Path | None, typer.Option(help="YAML file of a trunk's task, see configs/; the published protocol when left out.")
]


def evaluate(
    model: ModelOption,
    dataset: DatasetOption,
    root: Annotated[Path, typer.Option(help="Folder of the data set.")],
    event: Annotated[str | None, typer.Option(help="One event of the data set.")] = None,
    split: SplitOption = None,
    lists: ListsOption = None,
    protocol: ProtocolOption = "standard_ML",
    hold_out: HoldOutOption = None,
    one_shot: OneShotFlag = False,
    scores: ScoresOption = None,
    seeds: SeedsOption = None,
    config: ConfigOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    backend: BackendOption = "torch",
    json_output: JsonFlag = False,
) -> None:
    """Measure a model on labelled data at its card's threshold, or a trunk by what can be learned from its features."""
    options = {name: value for name, value in locals().items() if name != "json_output"}
    from mmcd.services.evaluate import EvaluateRequest
    from mmcd.services.evaluate import evaluate as run_evaluation

    request = EvaluateRequest.checked(**options)
    with ProgressBar() as progress:
        result = run_evaluation(request, progress)
    if json_output:
        print_json(result)
    else:
        _report(f"{model} on {dataset} {hold_out or event or split or ''}", request.dataset, request.downstream, result)


def _report(title: str, dataset: str, downstream: bool, result: dict[str, Any]) -> None:
    """Print the tables of a data set."""
    if downstream:
        from mmcd.commands.downstream_report import report_downstream

        report_downstream(title, result)
    elif dataset == "bright":
        from mmcd.commands.bright_report import report_bright

        report_bright(title, result)
    else:
        report(title, result)
