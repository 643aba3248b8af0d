# SPDX-License-Identifier: Apache-2.0
"""Stands in for SGLang's kernels' registry: single modules are carried."""
