"""`mmcd infer`: scores image pairs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmcd.commands.terminal import (
    BackendOption,
    DeviceOption,
    JsonFlag,
    PrecisionOption,
    ProgressBar,
    print_json,
    report,
    warn,
)
from mmcd.errors import UsageError

if TYPE_CHECKING:
    from mmcd.progress import Progress
    from mmcd.services.inference import RunResult

Options = dict[str, Any]
WindowOption = Annotated[
    str | None, typer.Option(help="Patch method: weight of a score in its ROI, classic (all alike) or dome.")
]

_BeforeArgument = Annotated[Path | None, typer.Argument(help="Optical image before.")]
_AfterArgument = Annotated[Path | None, typer.Argument(help="Radar or optical image after.")]
_OutOption = Annotated[
    Path,
    typer.Option(
        help="Folder for score.tif, mask.tif, item.json, manifest.json (and building_probability.tif, or "
        "distance.tif and change_prediction.png)."
    ),
]
_SceneOption = Annotated[str | None, typer.Option(help="Id of a scene, instead of two files.")]
_RootOption = Annotated[Path | None, typer.Option(help="Folder of a BRIGHT data set, for --image-id.")]
_ImageIdOption = Annotated[str | None, typer.Option(help="Id of a tile in --root, instead of two files.")]
_SplitOption = Annotated[str | None, typer.Option(help="Folder of the tile in the contest's layout.")]
_ModelOption = Annotated[
    str | None,
    typer.Option(
        help="Name or card; chosen by bands, GSD and sensor if left out. For --method patch also a checkpoint of "
        "the reference, such as best_model.pth."
    ),
]
_MethodOption = Annotated[str, typer.Option(help="dense (one pass) or patch (the reference's sliding window, slow).")]
_RegionOption = Annotated[str | None, typer.Option(help="W,S,E,N in degrees, or a GeoJSON or GeoPackage.")]
_TileOption = Annotated[
    int | None, typer.Option(help="Pixels worked on between two saves, 2048; never changes the result.")
]
_ThresholdOption = Annotated[
    float | None,
    typer.Option(help="Probability from which change is reported; with --method patch a distance, 0 to 2."),
]
_AlignOption = Annotated[
    bool, typer.Option("--align/--no-align", help="Move the image after back where it is displaced, up to 16 px.")
]
_AdaptOption = Annotated[
    bool, typer.Option("--adapt/--no-adapt", help="Adapt the model to the scene's own brightness and texture.")
]
_AdaptWeightOption = Annotated[
    float | None, typer.Option(help="Weight of the scene in --adapt, 0 (none) to 1; a small one if left out.")
]
_PowerOption = Annotated[float | None, typer.Option(help="Patch method: power of the dome, 2.")]
_StrideOption = Annotated[int | None, typer.Option(help="Patch method: pixels from one ROI to the next, 8.")]
_RoiSizeOption = Annotated[int | None, typer.Option(help="Patch method: side of the ROI in pixels, 16.")]
_ContextSizeOption = Annotated[int | None, typer.Option(help="Patch method: side of the context in pixels, 256.")]
_BatchSizeOption = Annotated[int | None, typer.Option(help="Patch method: contexts at once, 64.")]
_LabelOption = Annotated[
    Path | None, typer.Option(help="Patch method: damage classes to measure against, if not the tile's own.")
]

infer_app = typer.Typer(help="Score image pairs.", no_args_is_help=True)


@infer_app.command("predict")
def infer_predict(
    pre: _BeforeArgument = None,
    post: _AfterArgument = None,
    *,
    out: _OutOption,
    scene: _SceneOption = None,
    root: _RootOption = None,
    image_id: _ImageIdOption = None,
    split: _SplitOption = None,
    model: _ModelOption = None,
    method: _MethodOption = "dense",
    region: _RegionOption = None,
    tile: _TileOption = None,
    threshold: _ThresholdOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    backend: BackendOption = "auto",
    align: _AlignOption = False,
    adapt: _AdaptOption = False,
    adapt_weight: _AdaptWeightOption = None,
    window: WindowOption = None,
    power: _PowerOption = None,
    stride: _StrideOption = None,
    roi_size: _RoiSizeOption = None,
    context_size: _ContextSizeOption = None,
    batch_size: _BatchSizeOption = None,
    label: _LabelOption = None,
    json_output: JsonFlag = False,
) -> None:
    """Score a pair of images: probability of change and change mask as Cloud Optimized GeoTIFFs."""
    images = {"pre": pre, "post": post, "scene": scene, "out": out, "model": model, "region": region}
    shared = images | {"threshold": threshold, "device": device, "precision": precision}
    dense = {
        "tile": tile,
        "backend": None if backend == "auto" else backend,
        "align": align or None,
        "adapt": adapt or None,
        "adapt_weight": adapt_weight,
    }
    tile_of = {"root": root, "image_id": image_id, "split": split}
    sides = {"stride": stride, "roi_size": roi_size, "context_size": context_size}
    patch = {"window": window, "power": power, **sides, "batch_size": batch_size, "label": label}
    with ProgressBar() as progress:
        result = _predicted(method, shared, tile_of, dense, patch, progress)
    warn(result.warnings)
    if json_output:
        print_json(result.to_dict())
    else:
        report("Change found", result.summary())


@infer_app.command("threshold")
def infer_threshold(
    model: Annotated[str, typer.Option(help="Checkpoint of the reference, or name or card of a patch model.")],
    root: Annotated[Path, typer.Option(help="Folder of the data set.")],
    metadata: Annotated[Path, typer.Option(help="Its patch metadata, made by mmcd data index.")],
    dataset: Annotated[str, typer.Option(help="bright.")] = "bright",
    split: Annotated[str, typer.Option(help="train or val of the metadata.")] = "val",
    out: Annotated[
        Path | None, typer.Option(help="Folder for summary.json, threshold_metrics.json, scores, features and plots.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Patches at most, drawn at random; all if left out.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of that draw and of the interval.")] = 42,
    batch_size: Annotated[int, typer.Option(help="Patches at once.")] = 64,
    device: DeviceOption = "auto",
    precision: Annotated[str, typer.Option(help="auto (fp32, as the reference), bf16 or fp32.")] = "auto",
    json_output: JsonFlag = False,
) -> None:
    """Search the distance from which a patch counts as damaged: exact ROC and precision-recall curves, best cuts."""
    from mmcd.services.threshold import ThresholdRequest, search_threshold

    request = ThresholdRequest.checked(
        model=model,
        root=root,
        metadata=metadata,
        dataset=dataset,
        split=split,
        out=out,
        limit=limit,
        seed=seed,
        batch_size=batch_size,
        device=device,
        precision=precision,
    )
    with ProgressBar() as progress:
        result = search_threshold(request, progress)
    warn(result.warnings)
    if json_output:
        print_json(result.to_dict())
    else:
        report("Thresholds", result.summary())


def _predicted(
    method: str, shared: Options, tile_of: Options, dense: Options, patch: Options, progress: "Progress"
) -> "RunResult":
    """Run one of the two methods; an option of the other one is a mistake, not to be passed over."""
    from mmcd.inference.patch_model import is_checkpoint
    from mmcd.services.inference import PredictRequest, predict
    from mmcd.services.patch_map import PatchMapRequest, predict_patches

    if method not in ("dense", "patch"):
        raise UsageError(f"--method {method!r} is not one of dense and patch.", "See --help.")
    other = patch | tile_of if method == "dense" else dense
    astray = [f"--{name.replace('_', '-')}" for name, value in other.items() if value is not None]
    if astray:
        wanted = "patch" if method == "dense" else "dense"
        raise UsageError(
            f"Only --method {wanted} takes {', '.join(astray)}.", f"Add --method {wanted}, or leave it out."
        )
    if method == "dense":
        if shared["model"] and is_checkpoint(shared["model"]):
            raise UsageError(f"{shared['model']} is a checkpoint of a patch network.", "Add --method patch.")
        return predict(PredictRequest.checked(**shared, **_given(dense)), progress)
    if shared["model"] is None:
        raise UsageError("--method patch needs --model.", "Give a checkpoint such as best_model.pth, or a card.")
    return predict_patches(PatchMapRequest.checked(**shared, **tile_of, **_given(patch)), progress)


def _given(options: Options) -> Options:
    """Return the options that were given, so that the others keep the defaults of the request."""
    return {name: value for name, value in options.items() if value is not None}
