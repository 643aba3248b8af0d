# SPDX-License-Identifier: Apache-2.0
"""Stands in for vLLM's platforms: the CUDA device of this process, as torch sees it."""

from __future__ import annotations

import functools
import logging
from typing import NamedTuple

import torch

__all__ = ["current_platform"]


class _Capability(NamedTuple):
    major: int
    minor: int

    def to_int(self) -> int:
        return self.major * 10 + self.minor


class _Platform:
    device_type = "cuda"

    def is_cuda(self) -> bool:
        return torch.version.cuda is not None

    is_cuda_alike = is_cuda

    def is_rocm(self) -> bool:
        return False

    is_xpu = is_cpu = is_tpu = is_fp8_fnuz = is_rocm

    def fp8_dtype(self) -> torch.dtype:
        return torch.float8_e4m3fn

    @functools.cache  # noqa: B019 (there is one platform)
    def get_device_capability(self, device_id: int = 0) -> _Capability | None:
        if not torch.cuda.is_available():
            return None
        return _Capability(*torch.cuda.get_device_capability(device_id))

    def has_device_capability(self, capability: tuple[int, int] | int, device_id: int = 0) -> bool:
        have = self.get_device_capability(device_id)
        if have is None:
            return False
        if isinstance(capability, tuple):
            return have >= capability
        return have.to_int() >= capability

    def is_device_capability_family(self, capability: int, device_id: int = 0) -> bool:
        have = self.get_device_capability(device_id)
        return have is not None and have.major == capability // 10

    def num_compute_units(self, device_id: int = 0) -> int:
        return int(torch.cuda.get_device_properties(device_id).multi_processor_count)

    def get_device_name(self, device_id: int = 0) -> str:
        return str(torch.cuda.get_device_name(device_id))

    def import_kernels(self) -> None:
        """Register torch.ops._C; as in vLLM a failure is a warning."""
        try:
            import vllm._C_stable_libtorch  # noqa: F401
        except ImportError as error:
            logging.getLogger(__name__).warning("vllm._C_stable_libtorch: %s", error)


current_platform = _Platform()
