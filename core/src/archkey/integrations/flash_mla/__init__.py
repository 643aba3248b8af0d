# SPDX-License-Identifier: Apache-2.0
"""FlashMLA's interface on archkey's operators: its callers, and its own tests, on any target.

    from archkey.integrations import flash_mla
    flash_mla.install()                 # from here on `import flash_mla` gives this module

    python -m archkey.integrations.flash_mla tests/test_flash_mla_sparse_prefill.py

Names, order of arguments, defaults and layouts are those of deepseek-ai/FlashMLA 9241ae3: lse of
decode is `[B, H, q]`, a row without keys has an lse of +inf, and a scale that is not given is
`q.shape[-1] ** -0.5`, which is no absorbed model's. What decides is archkey's: any number of heads
and entries of a list, any page size, and each target's own kernels.

Inference only: there is no backward pass. Errors are archkey's (`ArgumentError`, `Unsupported`).
"""

from __future__ import annotations

import sys

from archkey.errors import ArchkeyError
from archkey.integrations.flash_mla.decode import (
    FlashMLASchedMeta,
    flash_mla_with_kvcache,
    get_mla_metadata,
)
from archkey.integrations.flash_mla.prefill import (
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
    flash_mla_sparse_fwd,
)

__all__ = [
    "FlashMLASchedMeta",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_mla_sparse_fwd",
    "flash_mla_with_kvcache",
    "get_mla_metadata",
    "install",
]

_NAMES = ("flash_mla", "flash_mla.flash_mla_interface")


def install() -> None:
    """From here on, `import flash_mla` in this process gives this module.

    archkey's own kernel of that name, which calls the library, refuses to be built then. Raises
    ArchkeyError if the library is imported already: whoever did so keeps its functions.
    """
    here = sys.modules[__name__]
    for name in _NAMES:
        found = sys.modules.get(name, here)
        if found is not here:
            where = getattr(found, "__file__", None) or "a file of no name"
            raise ArchkeyError(
                f"{name} is imported already, from {where}; call "
                "archkey.integrations.flash_mla.install() before anything imports it"
            )
    sys.modules.update(dict.fromkeys(_NAMES, here))
