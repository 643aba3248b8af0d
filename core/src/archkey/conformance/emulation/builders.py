# SPDX-License-Identifier: Apache-2.0
"""What the tables of the instruction families hold.

A family is a dictionary from mnemonics to builders. A builder looks at one instruction, once, and
returns the function that executes it on a wave.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from archkey.conformance.emulation.text import Instruction
from archkey.conformance.emulation.wave import Wave

__all__ = ["Builder", "Labels", "Step"]

Step: TypeAlias = Callable[[Wave], None]
Labels: TypeAlias = Mapping[str, int]
Builder: TypeAlias = Callable[[Instruction, Labels], Step]
