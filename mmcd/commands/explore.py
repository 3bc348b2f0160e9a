"""`mmcd explore`: opens the app on the explorer page."""

from pathlib import Path
from typing import Annotated
from urllib.parse import urlencode

import typer

from mmcd.commands.terminal import JsonFlag, print_json, results

explore_app = typer.Typer(help="Look through pictures or patches in the app.", no_args_is_help=True)

RootOption = Annotated[
    Path | None, typer.Option("--root", help="Folder of a data set; the scenes of the catalogs if left out.")
]
DatasetOption = Annotated[
    str | None, typer.Option("--dataset", help="bright, ombria or levir; found out by the folder if left out.")
]
PortOption = Annotated[int | None, typer.Option("--port", help="Port of the app; 8501 or the next free one.")]
NoBrowserFlag = Annotated[bool, typer.Option("--no-browser", help="Only print the address.")]


@explore_app.command()
def patches(
    root: RootOption = None,
    dataset: DatasetOption = None,
    port: PortOption = None,
    no_browser: NoBrowserFlag = False,
    json_output: JsonFlag = False,
) -> None:
    """Look at patch pairs: positive or negative ones, by 1, 10 or 100, with their label."""
    _explore("patches", root, dataset, port, no_browser, json_output)


@explore_app.command()
def images(
    root: RootOption = None,
    dataset: DatasetOption = None,
    port: PortOption = None,
    no_browser: NoBrowserFlag = False,
    json_output: JsonFlag = False,
) -> None:
    """Look at whole pictures side by side, and flag cloudy and shifted ones."""
    _explore("images", root, dataset, port, no_browser, json_output)


def _explore(
    view: str, root: Path | None, dataset: str | None, port: int | None, no_browser: bool, json_output: bool
) -> None:
    from mmcd.services.collections import CATALOG, OpenRequest, register
    from mmcd.services.serve import free_port, serve

    request = OpenRequest.checked(root=root, dataset=dataset)
    key = CATALOG if request.root is None else register(request.root, request.dataset)
    chosen = free_port(port)
    url = f"http://localhost:{chosen}/explorer?{urlencode({'view': view, 'data': key})}"
    if json_output:
        print_json({"url": url, "data": key})
    else:
        results.print(url, markup=False, highlight=False, soft_wrap=True)
    status = serve(chosen, None if no_browser else url)
    if status:
        raise typer.Exit(1)
