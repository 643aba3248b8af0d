# SPDX-License-Identifier: Apache-2.0
"""Stands in for SGLang's groups of operators: single modules are carried."""
