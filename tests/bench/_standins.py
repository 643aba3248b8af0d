# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for libraries that cannot run here: their functions, in their conventions.

Each has the real function's signature, and computes with archkey's reference what the library's own
documentation says, in its layouts: an adapter that swaps two arguments, or leaves a convention of
the library's in an output, is found out by comparing with the truth.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

Modules = Mapping[str, Mapping[str, Any]]


@contextmanager
def installed(modules: Modules) -> Iterator[None]:
    """Modules that can be imported, with these contents; adapters are imported anew meanwhile."""
    roots = {name.partition(".")[0] for name in modules}

    def taken_out() -> dict[str, ModuleType]:
        return {
            name: sys.modules.pop(name)
            for name in list(sys.modules)
            if name.partition(".")[0] in roots or name.startswith("archkey.bench.peers.")
        }

    before = taken_out()
    for name, contents in modules.items():
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            module = sys.modules.setdefault(".".join(parts[:end]), ModuleType(parts[end - 1]))
            module.__path__ = []
            if end > 1:
                setattr(sys.modules[".".join(parts[: end - 1])], parts[end - 1], module)
        vars(sys.modules[name]).update(contents)
    try:
        yield
    finally:
        taken_out()
        sys.modules.update(before)


def table_of(indptr: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """The block table `[B, most]` of lists in compressed rows."""
    bounds = indptr.tolist()
    rows = [indices[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).int()
