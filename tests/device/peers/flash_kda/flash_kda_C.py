# SPDX-License-Identifier: Apache-2.0
"""FlashKDA's compiled module under its own name, over what binding.cpp registers with torch."""

from __future__ import annotations

from pathlib import Path

import torch

torch.ops.load_library(str(Path(__file__).with_name("_flash_kda.so")))

fwd = torch.ops.flash_kda_carried.fwd
get_workspace_size = torch.ops.flash_kda_carried.get_workspace_size
