# SPDX-License-Identifier: Apache-2.0
"""archkey's plugin for the Kestrel K1; the door is `plugin.py`."""
