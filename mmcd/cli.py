"""The `mmcd` command.

Results go to standard output (with `--json` exactly one JSON object), progress and messages to standard error. Exit
codes: 0 fine, 1 the input or the data is at fault (one line: cause and next step), 2 usage, 130 interrupted. Every
command imports what it needs when it runs, so `mmcd --help` answers at once.
"""

import logging
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.table import Column, Table

from mmcd.commands.data import data_app
from mmcd.commands.embed import embed
from mmcd.commands.evaluate import evaluate
from mmcd.commands.explore import explore_app
from mmcd.commands.infer import infer_app
from mmcd.commands.jobs import jobs_app
from mmcd.commands.terminal import JsonFlag
from mmcd.commands.terminal import ProgressBar as _ProgressBar
from mmcd.commands.terminal import escaped as _escaped
from mmcd.commands.terminal import messages as _messages
from mmcd.commands.terminal import print_json as _print_json
from mmcd.commands.terminal import report as _report
from mmcd.commands.terminal import results as _results
from mmcd.commands.train import train_app
from mmcd.commands.weights import calibrate, convert, print_trunks, states_of
from mmcd.errors import Cancelled, MmcdError, UsageError

app = typer.Typer(
    name="mmcd",
    help="Find what a disaster changed between an optical image before and a radar image after.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
scenes_app = typer.Typer(help="Disaster scenes of the sample catalog and the workspace.", no_args_is_help=True)
weights_app = typer.Typer(help="Weights and their cards.", no_args_is_help=True)
workspace_app = typer.Typer(help="The folder of your own scenes and runs.", no_args_is_help=True)
for name, group in {
    "scenes": scenes_app,
    "data": data_app,
    "train": train_app,
    "infer": infer_app,
    "weights": weights_app,
    "explore": explore_app,
    "jobs": jobs_app,
    "workspace": workspace_app,
}.items():
    app.add_typer(group, name=name)
app.command()(evaluate)
app.command()(embed)
weights_app.command("calibrate")(calibrate)
weights_app.command("convert")(convert)

ImageArgument = Annotated[str, typer.Argument(help="Path, or http(s) address that is downloaded first.")]


def main() -> NoReturn:
    """Run the command line and leave with the documented exit codes."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, stream=sys.stderr, format="%(message)s")
    try:
        app()
    except MmcdError as error:
        if debug:
            raise
        _messages.print(f"[red]error:[/red] {_escaped(error)}", soft_wrap=True, highlight=False)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _messages.print("Interrupted. Nothing was left at the final name; run the same command to go on.")
        sys.exit(Cancelled.exit_code)
    sys.exit(0)


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        from mmcd import __version__

        _results.print(__version__)
        raise typer.Exit


@app.command()
def doctor(json_output: JsonFlag = False) -> None:
    """Check versions, devices, weights, assets and disk; say what is missing and how to get it."""
    from mmcd.services.doctor import diagnose

    report = diagnose()
    if json_output:
        _print_json(report.to_dict())
    else:
        _results.print(report.text(), markup=False, highlight=False)
    if not report.healthy:
        raise typer.Exit(1)


@app.command()
def assets() -> None:
    """Fetch the map's JavaScript once, for machines without internet."""
    from mmcd.services.assets import fetch_assets

    for line in fetch_assets():
        _messages.print(_escaped(line))


@app.command()
def worker(
    idle: Annotated[float | None, typer.Option(help="Leave after this many seconds without a job.", min=0)] = None,
    lane: Annotated[str | None, typer.Option(hidden=True, help="Be the process of one lane.")] = None,
) -> None:
    """Run queued jobs until stopped; the app starts one."""
    from mmcd.jobs import LANES, open_store, supervise
    from mmcd.paths import workspace

    if lane is None:
        if not supervise(open_store(workspace()), idle):
            _messages.print("Another worker serves this workspace already.")
        return
    if lane not in LANES:
        raise UsageError(f"There is no lane {lane!r}.", f"Write one of {', '.join(LANES)}.")
    from mmcd.services.worker import run

    run(lane, idle)


@scenes_app.command("list")
def scenes_list(json_output: JsonFlag = False) -> None:
    """List all scenes."""
    from mmcd.services.scenes import list_scenes, scene_facts

    facts = [scene_facts(scene) for scene in list_scenes()]
    if json_output:
        _print_json({"scenes": facts})
        return
    columns = ("id", "event_type", "place", "pre_date", "post_date", "gsd", "labelled")
    table = Table(*(Column(name, overflow="fold") for name in columns), title=f"{len(facts)} scenes")
    for fact in facts:
        table.add_row(*(_escaped("–" if fact[column] is None else fact[column]) for column in columns))
    _results.print(table)


@scenes_app.command("check")
def scenes_check(pre: ImageArgument, post: ImageArgument, json_output: JsonFlag = False) -> None:
    """Say what is found in a pair of images and what will be done about it."""
    from mmcd.geo.check import check_pair
    from mmcd.services.sources import local_file

    with _ProgressBar() as progress:
        before, after = (local_file(source, progress) for source in (pre, post))
        report = check_pair(before, after)
    if json_output:
        _print_json(report.to_dict())
    else:
        table = Table("", "image", "found", "what happens", title=f"{before.name} → {after.name}")
        for finding in report.findings:
            table.add_row(finding.severity, finding.subject, _escaped(finding.message), _escaped(finding.action))
        _results.print(table)
    if report.refused:
        raise typer.Exit(1)


@scenes_app.command("add")
def scenes_add(
    pre: ImageArgument,
    post: ImageArgument,
    scene_id: Annotated[str, typer.Option("--id", help="Short name of the scene.")],
    title: Annotated[str, typer.Option(help="One line for people.")] = "",
    event_type: Annotated[str, typer.Option(help="flood, earthquake, wildfire ...")] = "unknown",
    place: str = "",
    pre_date: Annotated[str, typer.Option(help="Day of the image before, YYYY-MM-DD.")] = "",
    post_date: Annotated[str, typer.Option(help="Day of the image after, YYYY-MM-DD.")] = "",
    pre_sensor: Annotated[str, typer.Option(help="Sensor of the image before, such as Sentinel-2.")] = "",
    post_sensor: Annotated[str, typer.Option(help="Sensor of the image after, such as Sentinel-1.")] = "",
    label: Annotated[str | None, typer.Option(help="Raster of labels, when there is one.")] = None,
    footprints: Annotated[str | None, typer.Option(help="Building polygons, when there are any.")] = None,
    licence: str = "",
    json_output: JsonFlag = False,
) -> None:
    """Check a pair of images and add it to the workspace."""
    from mmcd.services.scenes import AddSceneRequest, add_scene, scene_facts

    request = AddSceneRequest(
        pre=pre,
        post=post,
        id=scene_id,
        title=title,
        event_type=event_type,
        place=place,
        pre_date=pre_date or None,
        post_date=post_date or None,
        pre_sensor=pre_sensor,
        post_sensor=post_sensor,
        label=label,
        footprints=footprints,
        licence=licence,
    )
    with _ProgressBar() as progress:
        added = add_scene(request, progress)
    for finding in added.report.findings:
        if finding.severity == "warn":
            _messages.print(f"[yellow]warning:[/yellow] {_escaped(finding.message)}", soft_wrap=True)
    if json_output:
        _print_json(scene_facts(added.scene))
    else:
        _messages.print(f"Added {scene_id}.")


@scenes_app.command("remove")
def scenes_remove(
    scene_id: Annotated[str, typer.Argument(metavar="ID", help="A scene that was added; samples stay.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json_output: JsonFlag = False,
) -> None:
    """Remove a scene that was added, with its downloads and uploads. Its runs stay, and so do images given by path."""
    from mmcd.services.storage import removable, remove_scene, words_on_runs

    found = removable(scene_id)
    downloads = f" and {found.entries:,} of its images ({found.size / 1e6:,.1f} MB)" if found.entries else ""
    question = " ".join([f"Remove {scene_id}{downloads} for good?", words_on_runs(scene_id)]).rstrip()
    if not yes and not typer.confirm(question, err=True):
        raise Cancelled("Nothing was removed.")
    removed = remove_scene(scene_id)
    if json_output:
        _print_json({"id": scene_id, "images": removed.entries, "bytes": removed.size})
    else:
        _messages.print(f"Removed {scene_id}, {removed.size / 1e6:,.1f} MB freed.")


@workspace_app.command("show")
def workspace_show(json_output: JsonFlag = False) -> None:
    """Say where the workspace is and what takes how much space."""
    from mmcd.services.storage import PARTS, usage

    found = usage()
    if json_output:
        _print_json(found.to_dict())
        return
    table = Table("part", "holds", "entries", Column("MB", justify="right"), title=_escaped(found.folder))
    for part in found.parts:
        table.add_row(part.name, PARTS[part.name], f"{part.entries:,}", f"{part.size / 1e6:,.1f}")
    _results.print(table)
    _messages.print(f"{found.size / 1e6:,.1f} MB in all, {found.free / 1e9:,.1f} GB free, schema {found.schema}.")


@workspace_app.command("clear")
def workspace_clear(
    what: Annotated[str, typer.Argument(help="runs, or sources: downloads and uploads that no scene uses.")],
    scene: Annotated[str | None, typer.Option(help="Only the runs of this scene.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json_output: JsonFlag = False,
) -> None:
    """Remove runs, or images that no scene uses. Scenes, training runs and weights stay."""
    from mmcd.services.storage import ClearRequest, clear, clearable

    request = ClearRequest.checked(what=what, scene=scene)
    found = clearable(request)
    question = f"Remove {found.entries:,} {what} ({found.size / 1e6:,.1f} MB) for good?"
    if found.entries and not yes and not typer.confirm(question, err=True):
        raise Cancelled("Nothing was removed.")
    cleared = clear(request)
    if json_output:
        _print_json(cleared.to_dict())
    else:
        _messages.print(f"Removed {cleared.entries:,} {what}, {cleared.size / 1e6:,.1f} MB.")


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="Id of a run, or a folder that `infer predict --out` wrote.")],
    out: Annotated[Path, typer.Option(help="File, or folder in which files get their usual names.")],
    what: Annotated[str, typer.Option(help="score, mask, buildings, map or package (all of it, also as .zip).")],
    threshold: Annotated[
        float | None, typer.Option(help="Probability from which a pixel is changed; the run's if left out.")
    ] = None,
    footprints: Annotated[
        Path | None,
        typer.Option(help="Building outlines; else the scene's own, the model's if it marks buildings, or of change."),
    ] = None,
    json_output: JsonFlag = False,
) -> None:
    """Write score, mask, graded buildings, a standalone map or all of a run to files."""
    from mmcd.services.exports import ExportRequest, export_run, find_run

    request = ExportRequest.checked(what=what, out=out, threshold=threshold, footprints=footprints)
    with _ProgressBar() as progress:
        result = export_run(find_run(run), request.what, request.out, request.threshold, request.footprints, progress)
    for note in result.notes:
        _messages.print(f"note: {_escaped(note)}", soft_wrap=True, highlight=False)
    if json_output:
        _print_json(result.to_dict())
    else:
        for path in result.paths:
            _results.print(str(path), markup=False, highlight=False, soft_wrap=True)


@weights_app.command("list")
def weights_list(json_output: JsonFlag = False) -> None:
    """List the models that are here, what was exported of them, and the pretrained trunks to start training from."""
    from mmcd.cards import card_reference, known_cards
    from mmcd.services.weights import export_facts, exports_of_models
    from mmcd.trunk_cards import list_trunks

    cards, exports = [card for _, card in known_cards()], exports_of_models()
    if json_output:
        made = {name: [export_facts(record) for record in records] for name, records in exports.items()}
        models = [card.model_dump(mode="json") | {"exports": made[card.name]} for card in cards]
        trunks = [card.model_dump(mode="json") | {"path": str(path)} for path, card in list_trunks()]
        _print_json({"models": models, "trunks": trunks})
        return
    table = Table("name", "version", "before", "after", "GSD (m)", "threshold", "what it finds", "exports")
    for card in cards:
        table.add_row(
            card_reference(card),
            card.version,
            f"{card.pre.sensor} {' '.join(card.pre.bands)}",
            f"{card.post.sensor} {' '.join(card.post.bands)}",
            f"{card.gsd.min:g}–{card.gsd.max:g}",
            f"{card.decision.threshold:.3f}",
            card.title,
            ", ".join(f"{record.backend} {record.precision}" for record in exports[card.name]) or "–",
        )
    _results.print(table)
    print_trunks([card for _, card in list_trunks()])


@weights_app.command("export")
def weights_export(
    model: Annotated[str, typer.Argument(help="Name or card.")],
    backend: Annotated[str, typer.Option(help="onnx or openvino.")],
    out: Annotated[
        Path | None, typer.Option(help="File .onnx, or .xml for OpenVINO; in the workspace if left out.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="int8 or fp32; int8 for openvino and fp32 for onnx if left out.")
    ] = None,
    calibration: Annotated[
        str, typer.Option(help="Images that int8 is fitted on: simulated, scenes, or a folder (STAC or OMBRIA).")
    ] = "simulated",
    images: Annotated[int, typer.Option(help="Number of calibration blocks.")] = 16,
    json_output: JsonFlag = False,
) -> None:
    """Write a model for ONNX Runtime or OpenVINO, which --backend of other commands then finds."""
    from mmcd.services.weights import ExportRequest, export_facts, export_summary, export_weights

    request = ExportRequest.checked(
        model=model, backend=backend, out=out, precision=precision, calibration=calibration, images=images
    )
    with _ProgressBar() as progress:
        record = export_weights(request, progress)
    if json_output:
        _print_json(export_facts(record))
    else:
        _report(f"Exported {record.model} {record.version}", export_summary(record))


@weights_app.command("verify")
def weights_verify(json_output: JsonFlag = False) -> None:
    """Compare every weight file with the hash in its card."""
    from mmcd.cards import card_reference, known_cards
    from mmcd.trunk_cards import list_trunks

    found = states_of((card_reference(card), path, card) for path, card in known_cards())
    trunks = states_of((card.name, path, card) for path, card in list_trunks())
    if json_output:
        _print_json({"weights": found, "trunks": trunks})
    else:
        _report("Weights", found | {f"trunk {name}": state for name, state in trunks.items()})
    if any(state != "verified" for state in (*found.values(), *trunks.values())):
        raise typer.Exit(1)
