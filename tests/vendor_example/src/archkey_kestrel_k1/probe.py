# SPDX-License-Identifier: Apache-2.0
"""Which Kestrel K1 devices are here: the simulator, where KESTREL_SIMULATOR=1."""

from __future__ import annotations

import os
from collections.abc import Iterator

from archkey.probe import Device
from archkey.target import Target


def devices() -> Iterator[Device]:
    """The simulated device. Its tensors lie in host memory, so torch calls their place "cpu"."""
    if os.environ.get("KESTREL_SIMULATOR") == "1":
        yield Device(
            Target.parse("kestrel_k1"),
            index=0,
            name="Kestrel K1 simulator",
            source="kestrel",
            compute_units=1,
            torch_type="cpu",
            driver="simulator 1.2",
            simulated=True,
        )
