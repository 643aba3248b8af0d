# SPDX-License-Identifier: Apache-2.0
"""The document of a run before anything is measured: a new one, or an earlier one to go on with."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from archkey import __version__
from archkey.bench import surroundings
from archkey.bench.asker import Terms
from archkey.bench.results import FORMAT
from archkey.errors import RecordError
from archkey.locate import find_device
from archkey.requirements import installed_versions

__all__ = ["new", "resumed"]


def new(terms: Terms, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A document without results, as it will be read: `settings` beside `terms` are plain JSON."""
    device = find_device(terms.device)
    return {
        "format": FORMAT,
        "complete": False,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "archkey": __version__,
        "machine": {"device": device.kind_to_json(), "host": _host()},
        "versions": {
            **installed_versions(["archkey", "torch", "triton", "numpy"]),
            "python": platform.python_version(),
        },
        "settings": {**terms.__dict__, **settings},
        "ceilings": [],
        "peers": [],
        "coverage": [],
        "workloads": [],
    }


def _host() -> dict[str, str]:
    host = find_device("cpu")
    return {
        "cpu": host.name,
        "cores": str(host.compute_units or os.cpu_count() or ""),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def resumed(document: dict[str, Any], fresh: Mapping[str, Any]) -> dict[str, Any]:
    """`document`, to go on with. RecordError if what was measured then cannot stand beside today's.

    fresh  what `new` gives now
    """
    for what, then, now in (
        ("card", surroundings.card(document), surroundings.card(fresh)),
        *(
            (f"version of {name}", document["versions"].get(name), version)
            for name, version in fresh["versions"].items()
        ),
        *(
            (name, document["settings"].get(name), fresh["settings"][name])
            for name in ("seed", "samples", "seconds")
        ),
    ):
        if then != now:
            raise RecordError(
                f"these results are of another {what}: {then}, here it is {now}; begin a new file"
            )
    document["settings"] = {**fresh["settings"], "resumed": True}
    return document
