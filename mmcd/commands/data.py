"""`mmcd data`: training and sample data."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from mmcd.commands.terminal import JsonFlag, ProgressBar, escaped, messages, print_json, report, results, warn
from mmcd.errors import UsageError

data_app = typer.Typer(help="Training and sample data.", no_args_is_help=True)


@data_app.command("simulate")
def data_simulate(
    out: Path,
    scenes: Annotated[
        int | None,
        typer.Option(help="Number of scenes, tiles, pairs or locations; 1 if left out, 24 for levir and seasonal."),
    ] = None,
    size: Annotated[int | None, typer.Option(help="Side in pixels; 1024 if left out, 264 for seasonal.")] = None,
    gsd: Annotated[float | None, typer.Option(help="Pixel size in metres; 0.5 if left out, 10 for seasonal.")] = None,
    seed: int = 0,
    event: Annotated[str | None, typer.Option(help="Event type; all in turn when left out.")] = None,
    layout: Annotated[
        str,
        typer.Option(
            help="catalog (STAC), bright (BRIGHT's flat tree), dfc25 (contest), levir (building change between two "
            "optical images) or seasonal (Sentinel-2 series as SeCo's and CACo's)."
        ),
    ] = "catalog",
    changed_share: Annotated[float, typer.Option(help="Share of the locations that changed; for seasonal.")] = 0.5,
    samples: Annotated[bool, typer.Option("--samples", help="Write the eight scenes of sample_data/.")] = False,
    json_output: JsonFlag = False,
) -> None:
    """Write simulated disaster scenes with labels and building footprints, towns that grow, or seasonal series."""
    from mmcd.services import simulate_seasonal as seasonal
    from mmcd.services.simulate import SimulateRequest, simulate
    from mmcd.services.simulate_bright import simulate_bright
    from mmcd.services.simulate_levir import PAIRS, simulate_levir

    usual = {"levir": (PAIRS, 1024, 0.5), "seasonal": (seasonal.LOCATIONS, seasonal.SIZE, seasonal.METRES)}
    count, side, metres = usual.get(layout, (1, 1024, 0.5))
    writers = {"catalog": simulate, "bright": simulate_bright, "dfc25": simulate_bright, "levir": simulate_levir}
    writers["seasonal"] = seasonal.simulate_seasonal
    request = SimulateRequest.checked(
        out=out,
        scenes=count if scenes is None else scenes,
        size=side if size is None else size,
        gsd=metres if gsd is None else gsd,
        seed=seed,
        event=event,
        layout=layout,
        changed_share=changed_share,
        samples=samples,
    )
    with ProgressBar() as progress:
        result = writers[request.layout](request, progress)
    if json_output:
        print_json(result.to_dict())
    else:
        made = {"levir": "pairs", "seasonal": "locations"}.get(layout, "scenes")
        messages.print(f"{len(result.scenes)} {made} in {escaped(result.catalog)}.")


@data_app.command("index")
def data_index(
    root: Annotated[Path, typer.Argument(help="Folder of BRIGHT, or of the contest's dfc25_track2_trainval.")],
    out: Annotated[Path, typer.Option(help="Folder of the patch metadata.")],
    dataset: Annotated[str, typer.Option(help="bright.")] = "bright",
    config: Annotated[Path | None, typer.Option(help="YAML file with roi_patch_size, patch_stride ...")] = None,
    limit: Annotated[int | None, typer.Option(help="Tiles at most.")] = None,
    train_ratio: Annotated[float, typer.Option(help="Share of the patches to learn from.")] = 0.8,
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 42,
    split_by: Annotated[
        str, typer.Option(help="What stays on one side: event, group (tiles that touch), image, patch or lists.")
    ] = "event",
    select_disaster: Annotated[str, typer.Option(help="Part of the ids, such as earthquake.")] = "",
    building_threshold: Annotated[float | None, typer.Option(help="Share of building in has_building; 0.2.")] = None,
    blacklist: Annotated[
        Path | None, typer.Option(help="Ids to leave out; ROOT/image_labels.txt if it is there.")
    ] = None,
    include_blacklist: Annotated[bool, typer.Option("--include-blacklist", help="Leave none out.")] = False,
    lists: Annotated[Path | None, typer.Option(help="Folder of split lists: only their train tiles.")] = None,
    protocol: Annotated[str, typer.Option(help="standard_ML, dfc25 or few_shot.")] = "standard_ML",
    hold_out: Annotated[str | None, typer.Option(help="Event that is tested on; with --split-by lists.")] = None,
    one_shot: Annotated[bool, typer.Option("--one-shot", help="See one train and one val tile of it.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace metadata of another configuration.")] = False,
    json_output: JsonFlag = False,
) -> None:
    """List the patch pairs of labelled tiles, with their damage, split so that nothing leaks."""
    from mmcd.services.index import IndexRequest, build_index

    request = IndexRequest.checked(
        root=root,
        out=out,
        dataset=dataset,
        config=config,
        limit=limit,
        train_ratio=train_ratio,
        seed=seed,
        split_by=split_by,
        select_disaster=select_disaster,
        building_threshold=building_threshold,
        blacklist=blacklist,
        include_blacklist=include_blacklist,
        lists=lists,
        protocol=protocol,
        hold_out=hold_out,
        one_shot=one_shot,
        overwrite=overwrite,
    )
    with ProgressBar() as progress:
        result = build_index(request, progress)
    if json_output:
        print_json(result.to_dict())
    else:
        warn(result.warnings)
        stats = result.summary["stats"]
        facts = {f"{part} {key}": value for part in ("train", "val") for key, value in stats[part].items()}
        report(f"Patches of {result.tiles:,} tiles, split by {result.summary['split_by']}", facts)


@data_app.command("tiles")
def data_tiles(
    root: Annotated[Path, typer.Argument(help="Folder of BRIGHT, or of the contest's dfc25_track2_trainval.")],
    footprints: Annotated[Path | None, typer.Option(help="Write the outline of every tile as GeoJSON.")] = None,
    lists: Annotated[
        Path | None, typer.Option(help="Folder of split lists: parts are counted and written too.")
    ] = None,
    json_output: JsonFlag = False,
) -> None:
    """Count the tiles of each event, name every missing file, and say where the tiles lie."""
    from mmcd.services.bright import TilesRequest, list_tiles

    with ProgressBar() as progress:
        result = list_tiles(TilesRequest(root=root, footprints=footprints, lists=lists), progress)
    if json_output:
        print_json(result.to_dict())
        return
    warn(result.warnings)
    table = Table(
        "event", "name", "tiles", "labelled", "parts", title=f"{result.tiles:,} tiles, {result.layout} layout"
    )
    for event in result.events:
        parts = ", ".join(f"{part} {count:,}" for part, count in event.parts.items())
        table.add_row(escaped(event.event), event.name, f"{event.tiles:,}", f"{event.labelled:,}", escaped(parts))
    results.print(table)


@data_app.command("download")
def data_download(
    name: Annotated[
        str,
        typer.Argument(
            help="bright (flat, whole), dfc25 (the contest's folders), levir-cd, eurosat (13 bands), eurosat-rgb, "
            "oscd, pastis or gid-15."
        ),
    ],
    root: Annotated[Path, typer.Option(help="Folder of the data set.")],
    event: Annotated[
        list[str] | None, typer.Option(help="Only this event, as in the ids; may be repeated. All if left out.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Where the archives lie, for a mirror.")] = None,
    json_output: JsonFlag = False,
) -> None:
    """Fetch a data set out of its published archives; BRIGHT file by file, or single events of it."""
    from mmcd.services import download_eurosat as eurosat
    from mmcd.services import download_levir as levir
    from mmcd.services import download_pixels as pixels
    from mmcd.services.download import LICENCE, DownloadRequest, download

    if event and name in (levir.NAME, *eurosat.NAMES, *pixels.NAMES):
        raise UsageError(f"{name} has no events.", "Leave --event out.")
    if name in eurosat.NAMES:
        asked = eurosat.EuroSatDownloadRequest.checked(name=name, root=root, address=address)
        messages.print(eurosat.LICENCE, soft_wrap=True, highlight=False)
        with ProgressBar() as progress:
            result = eurosat.download_eurosat(asked, progress)
    elif name in pixels.NAMES:
        tree = pixels.PixelsDownloadRequest.checked(name=name, root=root, address=address)
        messages.print(pixels.LICENCES[name], soft_wrap=True, highlight=False)
        with ProgressBar() as progress:
            result = pixels.download_pixels(tree, progress)
    elif name == levir.NAME:
        wanted = levir.LevirDownloadRequest.checked(root=root, address=address)
        messages.print(levir.LICENCE, soft_wrap=True, highlight=False)
        with ProgressBar() as progress:
            result = levir.download_levir(wanted, progress)
    else:
        request = DownloadRequest.checked(name=name, root=root, events=tuple(event or ()), address=address)
        messages.print(LICENCE, soft_wrap=True, highlight=False)
        with ProgressBar() as progress:
            result = download(request, progress)
    warn(result.warnings)
    if json_output:
        print_json(result.to_dict())
    else:
        messages.print(f"{result.fetched:,} files fetched ({result.size / 1e6:,.1f} MB), {result.kept:,} were there.")
