"""Where peftjax keeps what it fetched or computed once: one folder per user.

`PEFTJAX_CACHE` overrides the place; the default is `$XDG_CACHE_HOME/peftjax` or `~/.cache/peftjax`. Everything below it
may be deleted at any time: it is fetched or computed again.
"""

import os
from pathlib import Path


def cache_dir(*parts: str) -> Path:
    """The folder `<cache>/<parts...>`, created if it is not there."""
    root = os.environ.get("PEFTJAX_CACHE")
    if not root:
        root = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache"), "peftjax")
    folder = Path(root).joinpath(*parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
