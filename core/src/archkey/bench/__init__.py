# SPDX-License-Identifier: Apache-2.0
"""Measuring: host costs here; kernels on a card later."""
