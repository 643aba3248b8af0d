# SPDX-License-Identifier: Apache-2.0
"""Plugins whose kernels are wrong, each in one way that was seen in the field. The exam must say
which: see `tests/conformance/test_liars.py`.
"""
