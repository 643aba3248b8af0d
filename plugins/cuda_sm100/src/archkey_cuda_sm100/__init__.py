# SPDX-License-Identifier: Apache-2.0
"""archkey's plugin for NVIDIA Blackwell; the door is `plugin.py`."""
