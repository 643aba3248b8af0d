# SPDX-License-Identifier: Apache-2.0
"""Which instructions are compared with AMD's pseudocode, which elsewhere; and numbers for them."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from tests.emulation.machine import EDGES
from tests.emulation.pseudocode import TEXTS

from archkey.conformance.emulation.program import families

ELSEWHERE: dict[str, str] = {
    r"v_mfma_.*": "test_matrix.py and test_whole_kernels.py: the reference has no pseudocode",
    r"v_accvgpr_.*": "test_isa_rest.py",
    r"v_(read(first)?lane|writelane|permlane.*|swap|mov)_b32": "test_lanes.py, test_isa_rest.py",
    r"ds_(b?permute|swizzle)_b32": "test_lanes.py",
    r"ds_read_b64_tr_b\d+": "test_isa_rest.py: of gfx950 the reference has no pseudocode",
    r"global_load_lds_.*": "test_memory.py and test_isa_rest.py",
    r"v_cvt_(scalef32_)?.*(fp8|bf8|fp4).*": "test_convert.py and test_isa_rest.py: against torch",
    r"v_fma_mix.*|v_fmac_f16": "test_floats.py and test_isa_rest.py: no pseudocode",
    r"v_cvt_pkrtz_f16_f32": "test_convert.py: another way of rounding",
    r"v_frexp_exp_.*": "test_isa_rest.py: of 0 the reference does not say what an exponent is",
    r"v_div_(scale|fixup|fmas)_f32": "test_floats.py: whole divisions against float64",
    r"s_cbranch_.*|s_branch|s_endpgm|s_barrier": "test_isa_rest.py; test_text.py",
    r"s_setreg_imm32_b32": "test_convert.py",
    r"s_(waitcnt|nop|setprio|sleep|inst_prefetch|sethalt)|s_[di]cache_\w+": "they do nothing here",
    r"buffer_(inv|wbl2)": "they do nothing here",
    r"s_cmp_(gt|ge|lt|le)_u64": "not in the reference, which has eq and lg; test_isa_rest.py",
}
"""What has no pseudocode to run, and where it is tested instead."""

INTEGERS = [0, 1, 2, 3, 7, 8, 31, 32, 63, 64, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000]
INTEGERS += [0x7FFFFFFF, 0x80000000, 0x80000001, 0xFFFFFFFE, 0xFFFFFFFF, 0x3F800000, 0x00FF00FF]


def elsewhere(name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in ELSEWHERE)


def known() -> dict[str, str]:
    """Mnemonic -> a target that has it."""
    return {name: target for target in ("gfx942", "gfx950") for name in families(target)}


def words(seed: int, floats: bool, half: bool) -> np.ndarray:
    """64 lanes of 32 bits: edges, then random ones of the kind."""
    random = np.random.default_rng(seed)
    words = random.integers(0, 1 << 32, 64, dtype=np.uint64).astype(np.uint32)
    if half:
        values = random.standard_normal((64, 2)) * np.exp2(random.uniform(-6, 6, (64, 2)))
        words = np.ascontiguousarray(values.astype(np.float16)).view(np.uint32)[:, 0]
        words[:16] = random.permutation(
            np.array([0, 0x8000, 0x3C00, 0x7C00, 0xFC00, 0x7E00, 1, 0x03FF], np.uint32).repeat(2)
        )
    elif floats:
        values = random.standard_normal(64) * np.exp2(random.uniform(-12, 12, 64))
        words = values.astype(np.float32).view(np.uint32).copy()
        words[: len(EDGES)] = random.permutation(EDGES).view(np.uint32)
    else:
        words[: len(INTEGERS)] = random.permutation(np.array(INTEGERS, np.uint32))
    return random.permutation(words)


def vector_names() -> Iterator[str]:
    for name in known():
        if name.startswith("v_") and name in TEXTS and not elsewhere(name):
            yield name


def scalar_names() -> Iterator[str]:
    for name in known():
        if re.match(r"s_(?!load)", name) and name in TEXTS and not elsewhere(name):
            yield name


def memory_names() -> Iterator[str]:
    for name in known():
        moves = re.match(
            r"(ds_(?!swizzle|permute|bpermute)|(global|buffer|scratch)_(load|store|atomic))", name
        )
        if moves and name in TEXTS and not elsewhere(name):
            yield name


def scalar_load_names() -> Iterator[str]:
    yield from (name for name in known() if name.startswith("s_load_"))
