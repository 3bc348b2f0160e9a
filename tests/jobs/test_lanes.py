"""Which job is next: lanes, turns between kinds, and the one GPU."""

import re
import sys
from pathlib import Path

import pytest

from mmcd import jobs
from mmcd.errors import InputError
from mmcd.jobs.places import device_of, gpu_here


@pytest.fixture
def store(tmp_path) -> jobs.JobStore:
    return jobs.JobStore(tmp_path / "jobs.sqlite")


def claimed(store: jobs.JobStore, lane=None, gpu=False) -> str | None:
    job = store.claim(lane, gpu)
    return job and job.id


def test_a_long_training_does_not_hold_up_a_quick_prediction(store):
    training, other, quick = store.submit("train", {}), store.submit("train", {}), store.submit("predict", {})
    assert claimed(store, "long") == training
    assert claimed(store, "quick") == quick
    assert claimed(store, "light") is None
    assert claimed(store, "long") == other  # one process a lane, so it asks only when the first one has ended


def test_kinds_take_turns_however_many_jobs_one_of_them_has(store):
    overnight = [store.submit("predict", {"scene": str(number)}) for number in range(4)]
    late = [store.submit("embed", {"run": str(number)}) for number in range(2)]
    order = []
    while job := store.claim("quick", gpu=False):
        order.append(job.id)
        store.finish(job.id, {})
    assert order == [overnight[0], late[0], overnight[1], late[1], overnight[2], overnight[3]]


def test_what_was_begun_goes_first(store):
    begun, other = store.submit("predict", {}), store.submit("embed", {})
    assert claimed(store) == begun
    store.recover()
    assert [claimed(store), claimed(store)] == [begun, other]


def test_one_job_has_the_gpu_and_quick_work_does_not_wait_for_it(store):
    training = store.submit("train", {})
    wants, either = store.submit("predict", {"device": "cuda"}), store.submit("predict", {"device": "auto"})
    assert store.claim("long", gpu=True).place == "gpu"
    found = store.claim("quick", gpu=True)
    assert (found.id, found.place) == (either, "cpu")
    assert store.claim("quick", gpu=True) is None
    store.finish(training, {})
    found = store.claim("quick", gpu=True)
    assert (found.id, found.place) == (wants, "gpu")


def test_the_gpu_is_kept_for_an_older_training_but_not_for_one_that_cannot_start(store):
    first = store.submit("predict", {"device": "auto"})
    training = store.submit("train", {})
    later = [store.submit("predict", {"device": "auto", "scene": str(number)}) for number in range(3)]
    assert store.claim("quick", gpu=True).place == "gpu"
    assert store.claim("long", gpu=True) is None  # hours on the processor would be worse than minutes of waiting
    store.finish(first, {})
    assert (store.claim("quick", gpu=True).place, store.get(later[0]).place) == ("cpu", "cpu")
    assert store.claim("long", gpu=True).id == training
    waiting = store.submit("train", {})
    assert store.get(training).place == "gpu"
    store.finish(training, {})
    blocker = store.submit("train", {}, device="cpu")
    assert claimed(store, "long", gpu=True) == waiting
    store.finish(waiting, {})
    assert claimed(store, "long", gpu=True) == blocker
    store.submit("train", {})
    assert store.claim("quick", gpu=True).place == "gpu"


def test_work_that_is_taken_up_again_stays_where_it_was(store):
    job_id = store.submit("predict", {"device": "auto"})
    assert store.claim(gpu=True).place == "gpu"
    store.recover()
    training = store.submit("train", {}, device="gpu")
    assert store.claim("long", gpu=True) is None  # the half-done one was promised the GPU before
    assert (claimed(store, "quick", gpu=True), store.get(job_id).place) == (job_id, "gpu")
    store.finish(job_id, {})
    assert claimed(store, "long", gpu=True) == training


def test_without_a_gpu_nothing_waits_for_one(store):
    either, wants = store.submit("predict", {}), store.submit("predict", {"device": "cuda"})
    assert [(job.id, job.place) for job in (store.claim(gpu=False), store.claim(gpu=False))] == [
        (either, "cpu"),
        (wants, "gpu"),  # its handler says that there is none
    ]


def test_the_need_is_told_from_the_request():
    assert device_of("predict", {}) == "any"
    assert device_of("predict", {"device": "cuda"}) == "gpu"
    assert device_of("predict", {"device": "cpu"}) == "cpu"
    assert device_of("check_scene", {}) == "cpu"


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the driver's files")
def test_a_hidden_gpu_is_none(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not gpu_here()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert gpu_here() == any(re.fullmatch(r"kfd|nvidia\d.*", file.name) for file in Path("/dev").iterdir())


@pytest.mark.parametrize(("gpu", "device"), [(True, "cpu"), (False, "auto")])
def test_a_handler_is_told_only_where_it_was_kept_from_the_gpu(store, monkeypatch, gpu, device):
    monkeypatch.setattr("mmcd.jobs.runner.gpu_here", lambda: gpu)
    monkeypatch.setattr("mmcd.jobs.store.gpu_here", lambda: gpu)
    store.submit("train", {})
    store.claim("long")
    job_id = store.submit("predict", {"device": "auto", "scene": "a"})
    jobs.run_worker(store, {"predict": lambda request, progress: request}, idle_seconds=0.0, lane="quick")
    assert store.get(job_id).result == {"device": device, "scene": "a"}
    assert store.get(job_id).request == {"device": "auto", "scene": "a"}


def test_a_job_is_found_by_the_beginning_of_its_id(store):
    ids = [store.submit("predict", {}) for _ in range(20)]
    assert store.find(ids[0][:16]).id == ids[0]
    with pytest.raises(InputError, match="no job"):
        store.find("%")
    with pytest.raises(InputError, match="Several"):
        store.find(next(digit for digit in "0123456789abcdef" if sum(i.startswith(digit) for i in ids) > 1))
    with pytest.raises(InputError):
        store.find("")


def test_what_failed_or_was_cancelled_can_be_retried_and_nothing_else(store):
    job_id = store.submit("predict", {})
    with pytest.raises(InputError, match="is queued"):
        store.retry(job_id)
    store.claim()
    store.fail(job_id, "The disk is full.", "Free some space.")
    store.retry(job_id)
    job = store.get(job_id)
    assert (job.state, job.attempt, job.message, job.hint, job.finished) == ("queued", 0, "", "", None)
    store.cancel(job_id)
    store.retry(job_id)
    store.claim()
    store.progress(job_id, "score", 1, 2)  # raises if the old cancel still held
    store.finish(job_id, {})
    with pytest.raises(InputError, match="is done"):
        store.retry(job_id)


def test_what_has_ended_can_be_deleted_with_its_log(store):
    job_id = store.submit("predict", {})
    with pytest.raises(InputError, match="Cancel it first"):
        store.delete(job_id)
    jobs.run_worker(store, {"predict": lambda request, progress: {}}, idle_seconds=0.0)
    log = jobs.log_path(store.path, job_id)
    assert log.is_file()
    store.delete(job_id)
    assert not log.exists() and store.list() == []
    with pytest.raises(InputError, match="no such job"):
        store.delete(job_id)


def test_long_lists_are_counted_filtered_and_paged(store):
    ids = [store.submit("predict", {"scene": f"place-{number}"}) for number in range(30)]
    other = store.submit("check_scene", {"pre": "Place-3.tif"})
    for job_id in ids[:3]:
        store.claim("quick", gpu=False)
        store.fail(job_id, "No space.")
    assert store.counts() == {"running": 0, "queued": 28, "failed": 3, "done": 0, "cancelled": 0}
    assert store.counts(kind="predict", search="PLACE-2")["queued"] == 10
    assert {job.id for job in store.list(search="place-3")} == {ids[3], other}
    assert [job.id for job in store.list(states=("failed",), search="no space")] == ids[2::-1]
    assert [job.id for job in store.list("predict", 10, offset=10)] == ids[19:9:-1]
    assert [job.id for job in store.active("predict")] == ids[3:]
    assert store.kinds() == ("check_scene", "predict")


def test_the_fingerprint_follows_states_and_not_progress(store):
    seen = [store.fingerprint()]
    job_id = store.submit("predict", {})
    seen.append(store.fingerprint())
    store.claim()
    seen.append(store.fingerprint())
    store.progress(job_id, "score", 1, 4)
    assert store.fingerprint() == seen[-1]
    store.cancel(job_id)
    seen.append(store.fingerprint())
    store.mark_cancelled(job_id)
    seen.append(store.fingerprint())
    store.delete(job_id)
    assert len(set(seen)) == len(seen)
    assert store.fingerprint() == seen[0]
