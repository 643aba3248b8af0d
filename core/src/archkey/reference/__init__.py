# SPDX-License-Identifier: Apache-2.0
"""The mathematics of every operator in plain torch, and the `cpu` plugin that serves it."""
