# SPDX-License-Identifier: Apache-2.0
"""`python -m archkey.integrations.flash_mla SCRIPT [ARG...]`: it imports archkey as `flash_mla`."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from archkey.integrations.flash_mla import install

if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    install()
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)  # as Python itself does for a script
    runpy.run_path(sys.argv[0], run_name="__main__")
