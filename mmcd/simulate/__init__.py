"""Simulated disaster scenes: geometry first, then an optical view before and a radar view after an event."""

from mmcd.simulate.scene import Building, SceneSpec, SimulatedScene, simulate_scene

__all__ = ["Building", "SceneSpec", "SimulatedScene", "simulate_scene"]
