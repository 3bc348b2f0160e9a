"""Long work that outlives the page that asked for it: a durable store of jobs, and the processes that run them.

**The store** is an SQLite file in the workspace, written by any process (`JobStore`). A job is a kind, a request of
plain values, a state and its progress; continuing where it stopped is up to the handler of its kind. Handlers are
handed in by the caller: nothing here knows what the work is.

**The worker** (``mmcd worker``, started by the app and watched by it: every page that shows a job calls
`ensure_worker` at each refresh) is a small supervisor that runs one process a *lane* when the lane has work, starts a
process that died again, and ends one whose job does not answer a cancel within `CANCEL_SECONDS`, in whatever library
it hangs. It holds a lock that the operating system frees when it dies, however it dies. Its processes end with it.
What was running is then queued again and taken up first; after `MAX_ATTEMPTS` deaths a job is given up.

**Lanes** keep short work from waiting for long work, see `mmcd.jobs.places`:

* ``light``: fetching and checking images; no model, seconds.
* ``quick``: scoring scenes, embeddings and all other kinds; minutes.
* ``long``: training; hours.

One job a lane runs at a time. Within a lane the kinds take turns (the kind that was served longest ago comes first,
the oldest job of it), so a thousand scenes queued overnight do not hold up one set of embeddings.

**Devices.** A job needs the ``gpu``, the ``cpu`` or ``any`` of them. On a machine with a GPU one job has it at a time,
over all lanes. Who waits for it: training, and whoever asks for it by name. Quick work that runs on either does not
wait: while the GPU is taken, or promised to an older job whose lane is free, it runs on the processor. The choice is
kept with the job, so that work taken up again goes on in the same arithmetic. Without a GPU all run on the processor.

**Logs.** Each job has a file ``logs/jobs/ID.log`` in the workspace; the worker's own messages are in
``logs/worker.log``.
"""

from mmcd.jobs.logs import log_path, log_tail
from mmcd.jobs.places import LANES, Device, Lane
from mmcd.jobs.runner import Handler, current_job, run_lane, run_worker
from mmcd.jobs.schema import SCHEMA_VERSION
from mmcd.jobs.spawn import _spawned, ensure_worker, open_store, worker_alive
from mmcd.jobs.store import MAX_ATTEMPTS, STATES, Job, JobStore, State
from mmcd.jobs.supervisor import CANCEL_SECONDS, Supervisor, supervise
from mmcd.progress import Progress

__all__ = [
    "CANCEL_SECONDS",
    "LANES",
    "MAX_ATTEMPTS",
    "SCHEMA_VERSION",
    "STATES",
    "Device",
    "Handler",
    "Job",
    "JobStore",
    "Lane",
    "Progress",
    "State",
    "Supervisor",
    "_spawned",
    "current_job",
    "ensure_worker",
    "log_path",
    "log_tail",
    "open_store",
    "run_lane",
    "run_worker",
    "supervise",
    "worker_alive",
]
