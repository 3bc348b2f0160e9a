"""`mmcd weights`: models and trunks that are here, checkpoints that are brought here, calibrations that are kept."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from mmcd.commands.terminal import JsonFlag, ProgressBar, escaped, messages, print_json, report, results
from mmcd.errors import MmcdError

if TYPE_CHECKING:
    from mmcd.cards import Weighted
    from mmcd.trunk_cards import TrunkCard


def print_trunks(cards: "Sequence[TrunkCard]") -> None:
    """Print pretrained trunks as a table of their own; nothing where there are none."""
    if not cards:
        return
    table = Table("trunk", "version", "body", "method", "bands", "what it learned", title="To start training from")
    for card in cards:
        words = (card.name, card.version, card.trunk, card.method, " ".join(card.bands), card.title)
        table.add_row(*map(escaped, words))
    results.print(table)


def states_of(cards: "Iterable[tuple[str, Path, Weighted]]") -> dict[str, str]:
    """Return ``verified``, or what is wrong with the weight file, by the given name of each card."""
    from mmcd.cards import verify_weights

    found: dict[str, str] = {}
    for name, path, card in cards:
        key = f"{name} at {path}" if name in found else name
        try:
            verify_weights(path, card)
            found[key] = "verified"
        except MmcdError as error:
            found[key] = str(error)
    return found


def convert(
    file: Annotated[Path, typer.Argument(help="Checkpoint as published: .pth, .pt, .ckpt, .bin or .safetensors.")],
    out: Annotated[Path, typer.Option(help="File of weights to write (.safetensors); its card lies beside it.")],
    layout: Annotated[
        str, typer.Option("--format", help="auto, caco, seco, saco, torchgeo or torchvision: how the file is laid out.")
    ] = "auto",
    name: Annotated[str | None, typer.Option(help="Name of the trunk; that of --out if left out.")] = None,
    bands: Annotated[
        str | None, typer.Option(help="Bands of the first convolution in channel order, such as B4,B3,B2.")
    ] = None,
    json_output: JsonFlag = False,
) -> None:
    """Bring the pretrained trunk of a published checkpoint here: all of it, or an error that says what is missing."""
    from mmcd.services.convert import ConvertRequest, convert_summary, convert_weights

    named = None if bands is None else [band.strip() for band in bands.split(",") if band.strip()]
    request = ConvertRequest.checked(file=file, out=out, format=layout, name=name, bands=named)
    with ProgressBar() as progress:
        converted = convert_weights(request, progress)
    if json_output:
        print_json(converted.to_dict())
        return
    for note in converted.notes:
        messages.print(f"note: {escaped(note)}", soft_wrap=True, highlight=False)
    report(f"Converted {converted.card.name}", convert_summary(converted))


def calibrate(
    run: Annotated[str | None, typer.Argument(help="Id or folder of a run of a labelled scene; or --dataset.")] = None,
    *,
    method: Annotated[
        str, typer.Option(help="temperature (one factor) or beta (three numbers, needs more labels).")
    ] = "temperature",
    threshold: Annotated[
        float | None,
        typer.Option(help="Where you cut now, if not at the model's own; the new one cuts at the same place."),
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="ombria, bright or levir, instead of a run.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the data set.")] = None,
    model: Annotated[str | None, typer.Option(help="Model for the data set.")] = None,
    event: Annotated[str | None, typer.Option(help="One event of the data set.")] = None,
    split: Annotated[str | None, typer.Option(help="Part of the data set, such as val.")] = None,
    scores: Annotated[
        Path | None, typer.Option(help="Folder that `mmcd evaluate --scores` filled: nothing is scored again.")
    ] = None,
    json_output: JsonFlag = False,
) -> None:
    """Fit a model's probabilities on labelled scores and keep them as a new version; the old one stays as it is."""
    from mmcd.services.calibrate import CalibrateRequest
    from mmcd.services.calibrate import calibrate as fit_and_keep

    of_data = {"dataset": dataset, "root": root, "model": model, "event": event, "split": split, "scores": scores}
    request = CalibrateRequest.checked(run=run, method=method, threshold=threshold, **of_data)
    with ProgressBar() as progress:
        made = fit_and_keep(request, progress)
    found = made.to_dict()
    if json_output:
        print_json(found)
        return
    for name in ("before", "after", "held_out"):
        errors = found.pop(name, None)
        if errors is not None:
            found[f"{name.replace('_', ' ')}: calibration error"] = round(errors["ece"], 4)
            found[f"{name.replace('_', ' ')}: log loss (nats)"] = round(errors["log_loss"], 4)
    report("Kept as a new version", found)
