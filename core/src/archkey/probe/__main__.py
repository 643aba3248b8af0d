# SPDX-License-Identifier: Apache-2.0
"""`python -m archkey.probe --record`: the drivers' answers as JSON that the tests can replay."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from archkey.probe import amdsmi, kfd, nvml, probe


def _chooses(variable: str) -> bool:
    return "VISIBLE_DEVICES" in variable or variable == "GPU_DEVICE_ORDINAL"


def _answer(api: Any, function: str, *arguments: Any) -> Any:
    """An answer of NVML as JSON; an error as {"error": its class}."""
    try:
        value = getattr(api, function)(*arguments)
    except api.NVMLError as error:
        return {"error": type(error).__name__}
    fields = getattr(value, "_fields_", None)  # a ctypes structure
    return {name: getattr(value, name) for name, _ in fields} if fields else value


def _record_nvml() -> dict[str, Any]:
    try:
        api = nvml.load()
    except OSError:
        return {"nvmlInit": {"error": "NVMLError_LibraryNotFound"}}
    api.nvmlInit()
    handles = [api.nvmlDeviceGetHandleByIndex(i) for i in range(api.nvmlDeviceGetCount())]
    gpus = [{name: _answer(api, name, handle) for name in nvml.FACTS} for handle in handles]
    return {name: _answer(api, name) for name in nvml.SYSTEM} | {"devices": gpus}


def _record_amdsmi() -> dict[str, Any] | None:
    """The answers by PCI address and function; None where KFD has no GPU or amdsmi is broken."""
    if not kfd.find(Path("/"))[0]:
        return None
    try:
        with amdsmi.opened(amdsmi.load()) as api:
            return {
                address: {name: _smi_answer(api, name, handle) for name in amdsmi.FACTS}
                for address, handle in amdsmi.handles(api).items()
            }
    except Exception:  # as the probe: a library from elsewhere may raise anything
        return None


def _smi_answer(api: Any, function: str, handle: Any) -> Any:
    """An answer of amdsmi; an error as {"error": its class, "code": its number}."""
    try:
        return getattr(api, function)(handle)
    except Exception as error:
        return {"error": type(error).__name__, "code": getattr(error, "err_code", None)}


found = probe()
devices = [
    {name: value for name, value in device.to_json().items() if value not in (None, "")}
    for device in found.devices
]
result: Any = devices
if "--record" in sys.argv[1:]:
    paths = [path for pattern in kfd.FILES for path in sorted(Path("/").glob(pattern))]
    result = {
        "source": "Recorded by python -m archkey.probe --record.",
        "environ": {k: v for k, v in os.environ.items() if _chooses(k)},
        "nvml": _record_nvml(),
        "amdsmi": _record_amdsmi(),
        # /dev/kfd counts by being there; it is a device and holds no text.
        "files": {str(p.relative_to("/")): p.read_text() if p.is_file() else "" for p in paths},
        "expected": {"devices": devices[:-1], "notes": [str(note) for note in found.notes]},
    }
print(json.dumps(result, indent=1))
