# SPDX-License-Identifier: Apache-2.0
"""The process that compares: `python -m archkey.conformance.emulation.captured.replayer`.

Asked by `comparing` for launches, `{"at": place in the file}`. It answers with the differences.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from archkey._process import Say, serve
from archkey.conformance.emulation.captured.archive import Archive
from archkey.conformance.emulation.captured.replay import compare
from archkey.conformance.emulation.processes import processes
from archkey.errors import describe

__all__ = ["main"]


def main() -> None:
    """Answer until stdin ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--path", type=Path, required=True)
    given = parser.parse_args()

    def start() -> Callable[[dict[str, Any], Say], None]:
        import torch

        torch.set_num_threads(1)
        archive = Archive(given.path)
        archive.read()

        def answer(question: dict[str, Any], say: Say) -> None:
            launch, began, fault = archive.launch(question["at"]), time.monotonic(), ""
            differences = []
            try:
                with processes(1):  # `comparing` has one a job
                    differences = [one.to_json() for one in compare(launch)]
            except Exception as error:
                fault = describe(error)
            seconds = round(time.monotonic() - began, 2)
            say(fault=fault, differences=differences, seconds=seconds)

        return answer

    serve(start)


if __name__ == "__main__":
    main()
