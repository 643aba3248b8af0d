# SPDX-License-Identifier: Apache-2.0
"""archkey's plugin for AMD CDNA3; the door is `plugin.py`."""
