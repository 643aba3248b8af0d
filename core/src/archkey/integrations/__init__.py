# SPDX-License-Identifier: Apache-2.0
"""Bridges to other systems, each optional: imported by who has the system, never by the core."""
