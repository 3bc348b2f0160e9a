"""Puts the app, the weights and the samples inside the wheel; an editable install reads them from the checkout."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SHIPPED = ("app.py", "pages", "weights", "sample_data", "configs", ".streamlit")


class ShipWithWheel(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the top-level folders to the wheel as ``mmcd/_shipped``."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Extend the list of files of a standard wheel."""
        if version == "standard":
            build_data["force_include"].update({name: f"mmcd/_shipped/{name}" for name in SHIPPED})
