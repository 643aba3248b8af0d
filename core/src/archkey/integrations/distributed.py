# SPDX-License-Identifier: Apache-2.0
"""Do all ranks of a torch.distributed group run the same kernels?

Ranks that choose differently give results that differ in the last bits, or wait for each other
forever (flashinfer#3186, sglang#23317). Ask once, after `session.prepare`:

    from archkey.integrations.distributed import assert_agree
    assert_agree(session, group)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.distributed as dist

from archkey.errors import ArchkeyError
from archkey.session import Session

__all__ = ["assert_agree", "differences"]

_MOST = 20  # lines of a message; the first ones tell what is wrong


def assert_agree(session: Session, group: Any = None) -> None:
    """Compare target, plugins, versions and decisions of all ranks, all of which must call it.

    group  a torch.distributed process group; default the world

    Raises ArchkeyError on every rank alike if one differs from the first rank, naming the rank and
    the entry. Ranks must have prepared the same problems.
    """
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, session.identity(), group=group)
    found = differences(everyone)
    if found:
        more = f"\n... and {len(found) - _MOST} more" if len(found) > _MOST else ""
        raise ArchkeyError("ranks do not agree:\n" + "\n".join(found[:_MOST]) + more)


def differences(everyone: Sequence[Mapping[str, str]]) -> list[str]:
    """A line for every entry in which a rank differs from rank 0."""
    first, missing = everyone[0], "nothing"
    return [
        f"rank {rank} has {other.get(entry, missing)} for {entry}, "
        f"rank 0 has {first.get(entry, missing)}"
        for rank, other in enumerate(everyone)
        for entry in sorted({*first, *other})
        if first.get(entry) != other.get(entry)
    ]
