# SPDX-License-Identifier: Apache-2.0
"""Calls of the MLA operators as data: what a case, an edge and a drawn example differ in.

Keys are normal with a standard deviation of 0.1, queries of 4: scores then have one of 0.7, so
that a softmax is neither one-hot nor flat, and both hide errors. All that a kernel must not read
is poisoned: slots past a sequence's end or left of its window, unused pages, keys of sequences
without queries, gaps of strided tensors; unused entries of the block table name no page.
"""

from __future__ import annotations

from archkey.conformance.cases.mla.inputs_decode import Decode
from archkey.conformance.cases.mla.inputs_merge import Merge
from archkey.conformance.cases.mla.inputs_prefill import Prefill

__all__ = ["Decode", "Merge", "Prefill"]
