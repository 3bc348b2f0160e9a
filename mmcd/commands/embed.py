"""`mmcd embed`: lays out the embeddings of patch pairs on a plane."""

from pathlib import Path
from typing import Annotated

import typer

from mmcd.commands.terminal import DeviceOption, JsonFlag, ProgressBar, print_json, report


def embed(
    run: Annotated[str | None, typer.Argument(help="Id or folder of a run; or give --dataset.")] = None,
    *,
    out: Annotated[Path, typer.Option(help="GeoParquet file: a row a point with place, score and coordinates.")],
    dataset: Annotated[str | None, typer.Option(help="ombria or bright, instead of a run.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the data set.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Model for the data set; for bright also a reference checkpoint, .pth.")
    ] = None,
    event: Annotated[str | None, typer.Option(help="One event of the data set.")] = None,
    split: Annotated[str | None, typer.Option(help="Part of the data set, such as train or test.")] = None,
    tiles: Annotated[int, typer.Option(help="Tiles of the data set at most, spread over its events.")] = 200,
    pairs: Annotated[int, typer.Option(help="Patch pairs of the data set at most.")] = 10_000,
    method: Annotated[str, typer.Option(help="umap, tsne or pca.")] = "umap",
    what: Annotated[
        str,
        typer.Option(
            help="sar, optical, both (side by side), difference, joint (two points a pair) or sar_features (the "
            "reference's encoder; of other models the SAR vectors)."
        ),
    ] = "sar",
    neighbors: Annotated[int, typer.Option(help="UMAP: neighbours that stay together.")] = 15,
    min_dist: Annotated[float, typer.Option(help="UMAP: smallest distance of points.")] = 0.1,
    perplexity: Annotated[float, typer.Option(help="t-SNE: neighbours that count.")] = 30,
    seed: Annotated[int, typer.Option(help="The same seed gives the same picture.")] = 42,
    device: DeviceOption = "auto",
    json_output: JsonFlag = False,
) -> None:
    """Lay out the patch pairs of a run or a data set on a plane; say how far the picture can be trusted."""
    from mmcd.services.embeddings import EmbedRequest
    from mmcd.services.embeddings import embed as lay_out_pairs

    given = {"run": run, "dataset": dataset, "root": root, "model": model, "event": event, "split": split}
    request = EmbedRequest.checked(
        **given,
        tiles=tiles,
        pairs=pairs,
        method=method,
        what=what,
        neighbors=neighbors,
        min_dist=min_dist,
        perplexity=perplexity,
        seed=seed,
        device=device,
        out=out,
    )
    with ProgressBar() as progress:
        view = lay_out_pairs(request, progress)
    facts = view.facts() | {"out": str(out)}
    if json_output:
        print_json(facts)
        return
    events = facts.pop("events")
    report("Embeddings", {name: value for name, value in facts.items() if value is not None})
    for line in events:
        report(f"Silhouettes of {line['event'] or 'the scene'}", {k: v for k, v in line.items() if v is not None})
