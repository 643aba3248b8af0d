# SPDX-License-Identifier: Apache-2.0
"""archkey's plugin for AMD CDNA4; the door is `plugin.py`."""
