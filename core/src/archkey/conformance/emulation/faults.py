# SPDX-License-Identifier: Apache-2.0
"""What ends an emulated launch: a text that is not understood, or a program that errs."""

from __future__ import annotations

from archkey.errors import ArchkeyError

__all__ = ["Fault", "UnknownInstruction"]


class UnknownInstruction(ArchkeyError):
    """An opcode, a modifier or an operand that the emulator does not have. Nothing is ignored."""


class Fault(ArchkeyError):
    """The program did what faults on the hardware, or should: the message names the instruction."""
