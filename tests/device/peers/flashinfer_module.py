# SPDX-License-Identifier: Apache-2.0
"""Compile one of FlashInfer's modules with its own generator and flags, and print where it lies.

    FLASHINFER_CUDA_ARCH_LIST=9.0a CUDA_HOME=... python flashinfer_module.py NAME

Needs FlashInfer's wheel on PYTHONPATH, and torch, ninja, jinja2 and apache-tvm-ffi; no GPU.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from typing import Any

__all__ = ["MODULES", "Module"]

_ATTENTION = "flashinfer.jit.attention.modules"


@dataclass(frozen=True)
class Module:
    """A module of FlashInfer.

    generator  "package.module:function", which returns its build specification
    arguments  "bf16" and "i32" stand for torch's dtypes
    seconds    it took to compile on one busy core; None: more than 45 minutes (8 files of 5 to 6)
    """

    generator: str
    arguments: tuple[Any, ...]
    seconds: int | None


def _prefill(function: str, backend: str, qk: int, vo: int, seconds: int | None) -> Module:
    # no position encoding, sliding window, soft cap, fp16 products
    rest = (0, False, False, False)
    dtypes = ("bf16", "bf16", "bf16", "i32")
    return Module(f"{_ATTENTION}:{function}", (backend, *dtypes, qk, vo, *rest), seconds)


def _mla(backend: str, seconds: int) -> Module:
    dtypes = ("bf16", "bf16", "bf16", "i32")
    generator = f"{_ATTENTION}:gen_batch_mla_module"
    return Module(generator, (backend, *dtypes, 512, 64, False), seconds)


MODULES: dict[str, Module] = {
    "norm": Module("flashinfer.jit.norm:gen_norm_module", (), 80),
    "cascade": Module("flashinfer.jit.cascade:gen_cascade_module", (), 22),
    "mla-fa2": _mla("fa2", 63),
    "mla-fa3": _mla("fa3", 64),
    # What fa2's wrappers ask for first; its name ends with _kv_stride_equal.
    "prefill-fa2-128": _prefill("_gen_batch_prefill_primary_module", "fa2", 128, 128, 275),
    "prefill-fa3-128": _prefill("gen_batch_prefill_module", "fa3", 128, 128, None),
    "prefill-fa3-192": _prefill("gen_batch_prefill_module", "fa3", 192, 128, None),
}
"""What the bench's adapters ask FlashInfer for."""


def main() -> None:
    import torch  # not needed by those who read the table

    module = MODULES[sys.argv[1]]
    dtypes = {"bf16": torch.bfloat16, "i32": torch.int32}
    package, _, function = module.generator.partition(":")
    generate = getattr(importlib.import_module(package), function)
    specification = generate(*(dtypes.get(a, a) for a in module.arguments))
    specification.build()
    print(specification.jit_library_path)


if __name__ == "__main__":
    main()
