# SPDX-License-Identifier: Apache-2.0
"""What is counted of AMD's instructions: the class of a mnemonic, the FLOPs of a matrix product."""

from __future__ import annotations

import re

from archkey.conformance.emulation.text import Instruction

__all__ = ["class_of", "flops_of"]

_CLASSES = (
    ("matrix", r"v_mfma_"),
    (
        "atomics",
        r"(?:global|buffer)_atomic_|ds_(?:pk_)?(?:add|sub|min|max|and|or|xor|cmpst|wrxchg)_",
    ),
    ("copies to LDS", r"global_load_lds_"),
    ("global", r"(?:global|buffer|flat)_(?:load|store)_"),
    ("scratch", r"scratch_"),
    ("lanes", r"(?:ds_b?permute|ds_swizzle|v_readlane|v_readfirstlane|v_writelane|v_permlane)"),
    ("LDS", r"ds_"),
    ("scalar loads", r"s_(?:buffer_)?load_"),
    ("barriers and waits", r"s_(?:barrier|waitcnt|nop|sleep|setprio|sethalt)|buffer_(?:inv|wbl2)"),
    ("branches", r"s_(?:c?branch|endpgm|setpc|swappc|getpc)"),
    ("scalar", r"s_"),
    ("accumulator moves", r"v_accvgpr_"),
    ("special functions", r"v_(?:exp|log|rcp|rcp_iflag|rsq|sqrt|sin|cos)_"),
    ("conversions", r"v_cvt_"),
    ("floats", r"v_.*_(?:b?f16|f32|f64)$"),
    ("integers", r"v_"),
)


def class_of(instruction: Instruction) -> str:
    """The class of an instruction; those of vectors and scalars do not overlap."""
    if "lds" in instruction.modifiers:
        return "copies to LDS"
    return next(found for found, pattern in _CLASSES if re.match(pattern, instruction.name))


def flops_of(name: str) -> int:
    """Multiplications and additions of a matrix instruction of one wave; 0 of any other.

    Its name says M x N x K, and where there are several products, how many.
    """
    match = re.match(r"v_mfma_\w*?_(\d+)x(\d+)x(\d+)(?:_(\d+)b)?(?:_|$)", name)
    if match is None:
        return 0
    m, n, k, blocks = (int(group or 1) for group in match.groups())
    return 2 * m * n * k * blocks
