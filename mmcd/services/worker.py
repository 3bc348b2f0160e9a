"""What the worker's processes can do: one handler a kind of job."""

from typing import Any

from mmcd.jobs import Handler, Lane, open_store, run_lane
from mmcd.paths import workspace
from mmcd.progress import Progress
from mmcd.services.accuracy_data import run_accuracy
from mmcd.services.embeddings import EmbedRequest, embed, table_path
from mmcd.services.inference import PredictRequest, predict
from mmcd.services.run_samples import SamplesRequest, draw_samples
from mmcd.services.scenes import AddSceneRequest, check_scene
from mmcd.services.train_job import run_train


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


def run_embed(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Lay out the patch pairs of a run or a data set; the result names their table and says what was measured.

    Raises:
        MmcdError: They cannot be embedded or laid out, or the user stopped the job.
    """
    asked = EmbedRequest.checked(**request)
    view = embed(asked, progress)
    return {"table": table_path(asked).stem if asked.run is None else None, "run": asked.run, **view.facts()}


def run_samples(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Draw held-out tiles of a training for the Training page; the result names run and picture.

    Raises:
        MmcdError: The run or its data are at fault, or the user stopped the job.
    """
    return draw_samples(SamplesRequest.checked(**request), progress)


HANDLERS: dict[str, Handler] = {
    "predict": run_predict,
    "check_scene": run_check_scene,
    "train": run_train,
    "accuracy": run_accuracy,
    "embed": run_embed,
    "samples": run_samples,
}


def run(lane: Lane, idle_seconds: float | None = None) -> bool:
    """Run jobs of a lane as a process of the worker; False when another one serves the lane already.

    Args:
        lane: Which jobs.
        idle_seconds: Leave after this time without a job; None stays.
    """
    return run_lane(open_store(workspace()), HANDLERS, lane, idle_seconds)
