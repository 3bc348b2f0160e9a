"""Script and server in one file: ``streamlit run app.py`` serves ``app``; each browser session runs the page table."""

from pathlib import Path

import streamlit as st
from streamlit.runtime.pages_manager import PagesManager

from mmcd.errors import MmcdError
from mmcd.studio.carry import carry_selection
from mmcd.studio.messages import errors_shown
from mmcd.studio.routes import STATIC, error_response, raster_routes
from mmcd.studio.settle import settle

PAGES = Path(__file__).parent / "pages"

# A folder called pages beside the script means another kind of app to Streamlit until the first st.navigation has run:
# a visitor whose link leads to a page right after the start would get that page alone, without this table.
PagesManager.uses_pages_directory = False

app = st.App(
    __file__,
    routes=raster_routes(str(st.get_option("server.baseUrlPath") or "")),
    exception_handlers={MmcdError: error_response},
)

if __name__ == "__main__":
    st.set_page_config(page_title="mmcd", page_icon=str(STATIC / "icon.svg"), layout="wide")
    page = st.navigation(
        [
            st.Page(PAGES / "scenes.py", title="Scenes", icon=":material/public:", default=True),
            st.Page(PAGES / "damage_map.py", title="Damage map", icon=":material/map:"),
            st.Page(PAGES / "accuracy.py", title="Accuracy", icon=":material/query_stats:"),
            st.Page(PAGES / "explorer.py", title="Explorer", icon=":material/photo_library:"),
            st.Page(PAGES / "embeddings.py", title="Embeddings", icon=":material/scatter_plot:"),
            st.Page(PAGES / "training.py", title="Training", icon=":material/model_training:"),
            st.Page(PAGES / "jobs.py", title="Jobs", icon=":material/checklist:"),
        ],
        position="top",
    )
    carry_selection(page.url_path)
    try:
        with errors_shown():
            page.run()
    finally:
        settle(page.url_path)
