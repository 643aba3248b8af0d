# SPDX-License-Identifier: Apache-2.0
"""Stands in for SGLang's sparse attention: single modules are carried."""
