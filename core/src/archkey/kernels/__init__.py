# SPDX-License-Identifier: Apache-2.0
"""Triton bodies that several architectures share, and how a plugin lists them.

A body knows no architecture by name: what differs comes in as a tuning or a constexpr. Importing
this package, `catalogue` or `tunings` imports no triton; importing a body does.
"""
