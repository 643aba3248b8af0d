# SPDX-License-Identifier: Apache-2.0
"""Stands in for SGLang's package, whose own initialisation imports the whole server."""
