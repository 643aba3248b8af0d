# SPDX-License-Identifier: Apache-2.0
"""Stands in for vLLM's way to Triton, which looks for drivers first."""

import triton
import triton.language as tl
import triton.language.extra.libdevice as tldevice

LOG2E = 1.4426950408889634
LOGE2 = 0.6931471805599453
HAS_TRITON = True

__all__ = ["HAS_TRITON", "LOG2E", "LOGE2", "tl", "tldevice", "triton"]
