# SPDX-License-Identifier: Apache-2.0
"""Stands in for SGLang's registry of attention kernels: single modules are carried."""
