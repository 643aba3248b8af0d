# SPDX-License-Identifier: Apache-2.0
"""Stands in for SGLang's server: single modules are carried."""
