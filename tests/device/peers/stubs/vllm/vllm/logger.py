# SPDX-License-Identifier: Apache-2.0
"""Stands in for vLLM's logger: Python's own, with the methods that say a thing once."""

from __future__ import annotations

import functools
import logging
from typing import Any

__all__ = ["init_logger"]


class _Logger(logging.LoggerAdapter[logging.Logger]):
    @functools.cache  # noqa: B019 (loggers live as long as the process)
    def _once(self, level: int, message: str, *args: Any) -> None:
        self.log(level, message, *args)

    def debug_once(self, message: str, *args: Any, **_: Any) -> None:
        self._once(logging.DEBUG, message, *args)

    def info_once(self, message: str, *args: Any, **_: Any) -> None:
        self._once(logging.INFO, message, *args)

    def warning_once(self, message: str, *args: Any, **_: Any) -> None:
        self._once(logging.WARNING, message, *args)


def init_logger(name: str) -> _Logger:
    return _Logger(logging.getLogger(name), {})
