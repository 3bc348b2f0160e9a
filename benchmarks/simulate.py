"""Speed of simulated scenes in megapixels a second of processor time, and against a Gaussian filter in the same run.

    OMP_NUM_THREADS=1 python benchmarks/simulate.py

A scene is an optical image, a radar image and the labels. The filter is SciPy's, standard deviation 2, over one
float32 plane of the same size: the ratio says how many such passes a whole scene costs, whatever the machine.
"""

import time
from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter

from mmcd.simulate import SceneSpec, simulate_scene
from mmcd.simulate.events import EVENTS
from mmcd.simulate.layouts import LAYOUTS

SIZE, ROUNDS = 1024, 3


def best_seconds(work: Callable[[], object]) -> float:
    """Return the least processor time of a few rounds."""
    seconds = []
    for _ in range(ROUNDS):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


def main() -> None:
    plane = np.random.default_rng(0).random((SIZE, SIZE), dtype=np.float32)
    print(f"{'layout':<12}{'event':<12}{'seconds':>9}{'MP/s':>8}{'filters':>9}")
    rates = []
    for number, layout in enumerate(LAYOUTS):
        event = EVENTS[number]
        spec = SceneSpec(size=SIZE, seed=number, layout=layout, event=event)
        scene = best_seconds(lambda spec=spec: simulate_scene(spec))
        filtered = best_seconds(lambda: gaussian_filter(plane, 2))
        rates.append(SIZE * SIZE / 1e6 / scene)
        print(f"{layout:<12}{event:<12}{scene:>9.3f}{rates[-1]:>8.2f}{scene / filtered:>9.1f}")
    print(f"slowest layout: {min(rates):.2f} MP/s on one core, optical + radar + labels at {SIZE} x {SIZE}")


if __name__ == "__main__":
    main()
