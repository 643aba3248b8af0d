# SPDX-License-Identifier: Apache-2.0
"""A variant for NVIDIA Hopper; the door is `plugin.py`."""
