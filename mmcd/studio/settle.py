"""Keeps what a page loaded out of the garbage collector's way.

Streamlit collects garbage after every run of a script. With the libraries of these pages it looks through half a
million objects that live as long as the server, which takes a fifth of a second and holds back the page's last answer.
"""

import gc

_SETTLED: set[str] = set()


def settle(page: str) -> None:
    """Let the garbage collector pass over all that is there once a page has been drawn for the first time.

    What is counted out is still freed once nothing refers to it; only cycles that live at this moment would stay, so
    it is done once a page and process, not once a session.

    Args:
        page: Path of the page.
    """
    if page in _SETTLED:
        return
    _SETTLED.add(page)
    gc.collect()
    gc.freeze()
