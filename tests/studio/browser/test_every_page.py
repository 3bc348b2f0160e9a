"""Every page of the app by its own address, one after the other in the same window."""

import ast
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, expect

from ..conftest import bench_app
from .conftest import Watched, watching

pytestmark = pytest.mark.browser

PAGE_MS = 180_000  # the first page of a server imports what it needs, which takes long on a busy machine

TITLES = {
    "scenes": "Choose a scene to analyse",
    "damage_map": "Analyse a scene",
    "accuracy": "See how far a score can be trusted",
    "explorer": "Look through the data",
    "embeddings": "See how the model groups the patches",
    "training": "Train models and compare runs",
    "jobs": "Follow and manage jobs",
}


def page_table() -> dict[str, str]:
    """Return the path of each page by its name, in the order of the app's menu."""
    tree = ast.parse((bench_app.ROOT / "app.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "st.Page"]
    paths = {}
    for call in calls:
        name = ast.unparse(call.args[0]).split("/")[-1].strip(" '\"").removesuffix(".py")
        paths[name] = "" if any(word.arg == "default" for word in call.keywords) else f"/{name}"
    return paths


@pytest.fixture(scope="module")
def window(browser: Browser) -> Iterator[Watched]:
    with watching(browser) as watched:
        yield watched


@pytest.mark.parametrize(("name", "path"), page_table().items(), ids=page_table())
def test_a_page_opens_by_its_own_address_and_asks_for_nothing_that_is_not_there(window, address, prepared, name, path):
    """Two answers below a page's path are missing, always: Streamlit looks for its server there first."""
    page = window.page
    window.refused.clear()
    window.complaints.clear()
    page.goto(f"{address}{path}", wait_until="commit", timeout=PAGE_MS)
    expect(page.get_by_role("heading", level=1)).to_have_text(TITLES[name], timeout=PAGE_MS)
    expect(page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning", timeout=PAGE_MS)
    page.wait_for_load_state("networkidle", timeout=PAGE_MS)
    assert page.get_by_test_id("stException").count() == 0
    assert window.foreign == []
    assert window.complaints == []
    known = {f"{path}/_stcore/health", f"{path}/_stcore/host-config"}
    assert {urlsplit(url).path for url in window.refused} <= known
