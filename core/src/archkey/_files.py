# SPDX-License-Identifier: Apache-2.0
"""Files that are there as a whole or not at all, whenever a command is interrupted."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from archkey.settings import settings

__all__ = ["cache_path", "data_path", "replace"]


def data_path(*parts: str) -> Path:
    """A path in the user's data folder, or in ARCHKEY_DATA_DIR."""
    import platformdirs  # after `import archkey`, which must stay light

    chosen = settings().data_dir
    base = Path(chosen) if chosen else platformdirs.user_data_path("archkey")
    return base.joinpath(*parts)


def cache_path(*parts: str) -> Path:
    """A path in the user's cache folder, or in ARCHKEY_CACHE_DIR."""
    import platformdirs

    chosen = settings().cache_dir
    base = Path(chosen) if chosen else platformdirs.user_cache_path("archkey")
    return base.joinpath(*parts)


def replace(path: Path, text: str) -> None:
    """Make `text` the content of `path`; folders are made. OSError if that cannot be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(name, 0o644)
    os.replace(name, path)
