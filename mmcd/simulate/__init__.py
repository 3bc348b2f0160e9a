"""Simulated scenes: geometry first, then views of it.

Disasters between an optical image and a radar image, and towns that grow between two optical images.
"""

from mmcd.simulate.growth import GrowthSpec, SimulatedGrowth, simulate_growth
from mmcd.simulate.scene import Building, SceneSpec, SimulatedScene, simulate_scene

__all__ = [
    "Building",
    "GrowthSpec",
    "SceneSpec",
    "SimulatedGrowth",
    "SimulatedScene",
    "simulate_growth",
    "simulate_scene",
]
