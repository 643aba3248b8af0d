# SPDX-License-Identifier: Apache-2.0
"""`torch`, imported when it is first used.

Contracts, selection and explanation work without torch; only the rooms that touch tensors pay
for its import (about 1.5 s). `from archkey._torch import torch` gives a module that becomes the
real one attribute by attribute, so that the hot path reads a plain module dictionary.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any


class _Lazy(ModuleType):
    def __getattr__(self, name: str) -> Any:
        value = getattr(importlib.import_module(self.__name__), name)
        setattr(self, name, value)
        return value


torch: Any = _Lazy("torch")
