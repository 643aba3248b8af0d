# SPDX-License-Identifier: Apache-2.0
"""Stands in for vLLM's utilities, of which single modules are carried."""
