# SPDX-License-Identifier: Apache-2.0
"""`python -m archkey.probe --record`: the drivers' answers as JSON that the tests can replay."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from archkey.probe import kfd, nvml, probe


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
        "environ": {k: v for k, v in os.environ.items() if "VISIBLE_DEVICES" in k},
        "nvml": _record_nvml(),
        # /dev/kfd counts by being there; it is a device and holds no text.
        "files": {str(p.relative_to("/")): p.read_text() if p.is_file() else "" for p in paths},
        "expected": {"devices": devices[:-1], "notes": [str(note) for note in found.notes]},
    }
print(json.dumps(result, indent=1))
