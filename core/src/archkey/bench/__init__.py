# SPDX-License-Identifier: Apache-2.0
"""Measuring: kernels beside peers and bounds on a card, and what archkey costs on the host."""
