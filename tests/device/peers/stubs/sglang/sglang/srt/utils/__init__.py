# SPDX-License-Identifier: Apache-2.0
"""Stands in for SGLang's utilities: what its kernels import of them."""

from sglang.srt.utils.common import *  # noqa: F403 (as in SGLang)
