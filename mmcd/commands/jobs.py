"""`mmcd jobs`: what waits, runs and has ended."""

from typing import Annotated

import typer
from rich.table import Table

from mmcd.commands.terminal import JsonFlag, escaped, messages, print_json, results
from mmcd.errors import Cancelled, UsageError

jobs_app = typer.Typer(help="Jobs of the app: what waits, runs and has ended.", no_args_is_help=True)

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="Id of a job, or its beginning.")]

SHORT = 8
"""Characters of an id that a table shows: enough to tell thousands of jobs apart."""


@jobs_app.command("list")
def jobs_list(
    state: Annotated[str | None, typer.Option(help="running, queued, failed, done or cancelled.")] = None,
    kind: Annotated[str | None, typer.Option(help="predict, train ...")] = None,
    search: Annotated[str, typer.Option(help="Part of the request, the id or the message.")] = "",
    limit: Annotated[int, typer.Option(help="Jobs at most, the newest.", min=1)] = 200,
    json_output: JsonFlag = False,
) -> None:
    """List the jobs of the workspace, newest first."""
    from mmcd.jobs import STATES, open_store
    from mmcd.paths import workspace
    from mmcd.services.job_control import job_facts, kind_words, progress_words, subject

    chosen = tuple(each for each in STATES if each == state)
    if state is not None and not chosen:
        raise UsageError(f"There is no state {state!r}.", f"Write one of {', '.join(STATES)}.")
    store = open_store(workspace())
    found = store.list(kind, limit, states=chosen, search=search)
    counts = store.counts(kind, search)
    if json_output:
        print_json({"counts": counts, "jobs": [job_facts(job) for job in found]})
        return
    among = counts[chosen[0]] if chosen else sum(counts.values())
    table = Table("id", "what", "on", "state", "where", "asked for (UTC)", title=f"{len(found):,} of {among:,} jobs")
    for job in found:
        where = progress_words(job) or job.message
        asked = f"{job.submitted:%Y-%m-%d %H:%M}"
        row = (job.id[:SHORT], kind_words(job.kind), subject(job), job.state, where, asked)
        table.add_row(*map(escaped, row))
    results.print(table)


@jobs_app.command("cancel")
def jobs_cancel(job: IdArgument, json_output: JsonFlag = False) -> None:
    """Stop a job that waits or runs; what it has finished stays, and `retry` goes on from there."""
    from mmcd.services.job_control import cancel_job, find_job, job_facts

    stopped = cancel_job(find_job(job).id)
    if json_output:
        print_json(job_facts(stopped))
    else:
        messages.print("Cancelled." if stopped.state == "cancelled" else "Asked to stop; it ends within two seconds.")


@jobs_app.command("retry")
def jobs_retry(job: IdArgument, json_output: JsonFlag = False) -> None:
    """Queue a job again that failed or was cancelled, and start a worker if none runs."""
    from mmcd.services.job_control import find_job, job_facts, retry_job

    again = retry_job(find_job(job).id)
    if json_output:
        print_json(job_facts(again))
    else:
        messages.print(f"Queued {again.id[:SHORT]} again.")


@jobs_app.command("log")
def jobs_log(
    job: IdArgument, lines: Annotated[int, typer.Option(help="Lines at most, the last ones.", min=1)] = 40
) -> None:
    """Show the end of a job's log."""
    from mmcd.services.job_control import find_job, job_log

    for line in job_log(find_job(job).id, lines):
        results.print(line, markup=False, highlight=False, soft_wrap=True)


@jobs_app.command("delete")
def jobs_delete(
    job: IdArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json_output: JsonFlag = False,
) -> None:
    """Remove a job that has ended from the list, with its log. What it made stays."""
    from mmcd.services.job_control import delete_jobs, find_job, subject

    found = find_job(job)
    if not yes and not typer.confirm(f"Remove {found.id[:SHORT]} ({subject(found)}) and its log for good?", err=True):
        raise Cancelled("Nothing was removed.")
    delete_jobs([found.id])
    if json_output:
        print_json({"id": found.id})
    else:
        messages.print(f"Removed {found.id[:SHORT]}.")
