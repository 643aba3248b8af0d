# SPDX-License-Identifier: Apache-2.0
"""The names under which transformers finds archkey."""

from __future__ import annotations

from transformers import AttentionInterface, AttentionMaskInterface

from archkey.integrations.transformers.dense import attention
from archkey.integrations.transformers.masks import mask
from archkey.integrations.transformers.paged import paged_attention
from archkey.integrations.transformers.refusals import OP
from archkey.ops._checks import bad_value

# transformers looks for these anywhere in a name, and then takes it for one of its own.
_THEIRS = ("eager", "flash", "flex", "sdpa")


def register(name: str = "archkey") -> None:
    """Make `attn_implementation=name` and `f"paged|{name}"` known to transformers.

    name  an identifier that transformers does not know yet

    Calling it again changes nothing. Raises ArgumentValueError for a name that is taken, or that
    transformers would take for another implementation ("flash", "sdpa", "flex" or "eager" in it).
    """
    if not name.isidentifier() or any(word in name for word in _THEIRS):
        bad_value(OP, "name", f"an identifier without {', '.join(_THEIRS)}", repr(name))
    entries = (
        (AttentionInterface, name, attention),
        (AttentionMaskInterface, name, mask),
        # No mask under this name: transformers makes none then, and the batch's lengths say it all.
        (AttentionInterface, f"paged|{name}", paged_attention),
    )
    for interface, full, function in entries:
        if interface().get(full, function) is not function:
            bad_value(OP, "name", "one that transformers does not know yet", repr(full))
    for interface, full, function in entries:
        interface.register(full, function)
