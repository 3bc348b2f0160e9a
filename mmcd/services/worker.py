"""What the worker process can do: one handler a kind of job."""

import signal
import threading
from types import FrameType
from typing import Any

from mmcd.jobs import Handler, open_store, run_worker
from mmcd.paths import workspace
from mmcd.progress import Progress
from mmcd.services.inference import PredictRequest, predict
from mmcd.services.scenes import AddSceneRequest, check_scene


def run_predict(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Score a scene; the result names the run.

    Raises:
        MmcdError: The scene cannot be scored, or the user stopped the job.
    """
    result = predict(PredictRequest.checked(**request), progress)
    return {"run_id": result.manifest["run_id"], "folder": str(result.folder)}


def run_check_scene(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Fetch and check a pair of images for the Scenes page; the result is what `CheckedScene.to_dict` returns.

    Raises:
        MmcdError: An image cannot be fetched, or the user stopped the job.
    """
    return check_scene(AddSceneRequest.checked(**request), progress).to_dict()


HANDLERS: dict[str, Handler] = {"predict": run_predict, "check_scene": run_check_scene}


def run(idle_seconds: float | None = None) -> bool:
    """Run jobs of the workspace until the process is asked to stop; False when another worker serves it already.

    Args:
        idle_seconds: Leave after this time without a job; None stays.
    """
    stop = threading.Event()

    def leave(signum: int, frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, leave)
    return run_worker(open_store(workspace()), HANDLERS, idle_seconds, stop)
