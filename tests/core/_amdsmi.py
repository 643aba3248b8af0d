# SPDX-License-Identifier: Apache-2.0
"""AMD's management library without an AMD GPU, and recorded machines with something to add.

FakeSmi      the library: answers by PCI address and function name
answers      those of one GPU
bare         the files of a recording, less what sysfs does not always state
without      a change of these files: an unheard-of product, properties left out
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROBES = Path(__file__).with_name("probes")
ASIC, DRIVER = "amdsmi_get_gpu_asic_info", "amdsmi_get_gpu_driver_info"
MEMORY = "amdsmi_get_gpu_vram_info"
COMPUTE, NPS = "amdsmi_get_gpu_compute_partition", "amdsmi_get_gpu_memory_partition"
UNKNOWN_ID = 0x74FF

Change = Callable[[str, str], str | None]

NOT_SUPPORTED, NOT_INITIALISED, NO_PERMISSION = 2, 32, 10


class AmdSmiLibraryException(Exception):
    """As amdsmi's: a status, told on two lines."""

    def __init__(self, err_code: int) -> None:
        super().__init__(err_code)
        self.err_code = err_code

    def __str__(self) -> str:
        return f"Error code:\n\t{self.err_code} | AMDSMI_STATUS"


class FakeSmi:
    """The functions of amdsmi. A handle is a GPU's address.

    `answers` holds {address: {function: answer}}; {"error": ..., "code": number} is raised. A
    function that no GPU answers is not in this release. A GPU without answers does not even tell
    its address.
    """

    def __init__(self, answers: dict[str, dict[str, Any]], init_error: int = 0) -> None:
        self.answers = answers
        self.init_error = init_error
        self.running = False
        self.inits = 0

    def amdsmi_init(self) -> None:
        self.inits += 1
        if self.init_error:
            raise AmdSmiLibraryException(self.init_error)
        self.running = True

    def amdsmi_shut_down(self) -> None:
        self.running = False

    def amdsmi_get_processor_handles(self) -> list[str]:
        if not self.running:
            raise AmdSmiLibraryException(NOT_INITIALISED)
        return list(self.answers)

    def amdsmi_get_gpu_device_bdf(self, handle: str) -> str:
        if not self.answers[handle]:
            raise AmdSmiLibraryException(NO_PERMISSION)
        return handle

    def __getattr__(self, function: str) -> Any:
        if not any(function in gpu for gpu in self.answers.values()):
            raise AttributeError(function)

        def call(handle: str) -> Any:
            answer = self.answers[handle][function]
            if isinstance(answer, dict) and "error" in answer:
                raise AmdSmiLibraryException(answer["code"])
            return answer

        return call


def bare(name: str, root: Path, change: Change = lambda path, text: text) -> Path:
    """The files of a recording below `root`, without partition modes and driver version."""
    for path, text in json.loads((PROBES / f"{name}.json").read_text())["files"].items():
        changed = change(path, text)
        if changed is None or path.endswith(("_partition", "amdgpu/version")):
            continue
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(changed)
    return root


def without(*names: str) -> Change:
    """A node's properties without these, and a product that no table knows; no memory banks."""

    def change(path: str, text: str) -> str | None:
        if "mem_banks" in path:
            return None
        text = re.sub(r"device_id [1-9]\d*", f"device_id {UNKNOWN_ID}", text)
        return re.sub(rf"(?m)^({'|'.join(names)}) .*\n", "", text) if names else text

    return change


def answers(**changes: Any) -> dict[str, Any]:
    """The answers of one GPU, as ROCm 6.3 gives them."""
    return {
        ASIC: {"market_name": "AMD Instinct MI399X", "asic_serial": "0x3CBE002BD3B6313D"},
        DRIVER: {"driver_name": "amdgpu", "driver_version": "6.8.0-45-generic"},
        MEMORY: {"vram_type": 7, "vram_size": 196592},
        COMPUTE: "SPX",
        NPS: "NPS1",
    } | changes


def error(code: int) -> dict[str, Any]:
    return {"error": "AmdSmiLibraryException", "code": code}
