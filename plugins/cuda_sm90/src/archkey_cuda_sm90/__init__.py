# SPDX-License-Identifier: Apache-2.0
"""archkey's plugin for NVIDIA Hopper; the door is `plugin.py`."""
