# SPDX-License-Identifier: Apache-2.0
"""Stands in for vLLM's switchable modules, which read the server's compilation settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

__all__ = ["CustomOp"]

_Class = TypeVar("_Class", bound=type)


class CustomOp(nn.Module):
    @classmethod
    def register(cls, name: str) -> Callable[[_Class], _Class]:
        return lambda subclass: subclass

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        way: Callable[..., Any] = getattr(self, "forward_cuda", None) or self.forward_native
        return way(*args, **kwargs)
