# SPDX-License-Identifier: Apache-2.0
"""Stands in for vLLM's model executor."""
