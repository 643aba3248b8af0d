# SPDX-License-Identifier: Apache-2.0
"""One plugin a lie: the entry `TARGET.NAME` is the object `NAME` here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import archkey
from archkey.capabilities import Capability
from archkey.conditions import Condition, is_, one_of
from archkey.kernel import Kernel


class Liar:
    """A variant with one kernel, or with facts."""

    ARCHKEY_API = (1, 1)

    def __init__(
        self,
        operator: str = "",
        build: str = "",
        accepts: tuple[Condition, ...] = (),
        facts: tuple[Capability, ...] = (),
    ) -> None:
        self.operator, self.build, self.accepts, self.facts = operator, build, accepts, facts

    @archkey.hookimpl
    def archkey_capabilities(self, target: archkey.Target) -> Iterable[Capability]:
        return self.facts

    @archkey.hookimpl
    def archkey_kernels(self, target: archkey.Target) -> Iterable[Kernel]:
        if self.operator:
            path = f"archkey_liars.{self.build}"
            yield Kernel(self.operator, "kernel", path, accepts=self.accepts)


class Lie(NamedTuple):
    """What the exam is to find: at that level, a case whose name has `case` in it fails.

    why: in the reason, where the error alone does not tell
    """

    target: str
    level: str
    case: str
    liar: Liar
    why: str = ""


def _torch(operator: str, lie: str) -> Liar:
    return Liar(operator, f"lies:{lie}")


def _claims(name: str, value: object) -> Liar:
    return Liar("rmsnorm", "lies:honest", facts=(Capability(name, value, "brochure", "it sells"),))


_HEADS = (is_("heads", 1), is_("cast_before_weight", False))
_SLOTS = (is_("out_dtype", "bfloat16"), one_of("slot_dtype", ("int32", "none")))
_PLAIN = (is_("kv_format", "fp8_v32_fnuz"), *_SLOTS)

LIES = {
    "window_one_more": Lie(
        "cpu", "device", "window", _torch("unified_attention", "window_one_more")
    ),
    "window_one_less": Lie(
        "cpu", "device", "window", _torch("unified_attention", "window_one_less")
    ),
    "lse_in_base_2": Lie("cpu", "device", "LSE", _torch("mla_decode", "lse_in_base_2")),
    "row_left_unwritten": Lie(
        "cpu", "device", "no keys", _torch("unified_attention", "row_left_unwritten")
    ),
    "unmasked_values": Lie("cpu", "device", "NaN", _torch("mla_decode", "unmasked_values")),
    "index_minus_one": Lie("cpu", "device", "-1", _torch("sparse_mla_prefill", "index_minus_one")),
    "clamped_index": Lie("cpu", "device", "-1", _torch("sparse_mla_prefill", "clamped_index")),
    "page_16_only": Lie("cpu", "device", "page 64", _torch("unified_attention", "page_16_only")),
    "split_by_batch": Lie(
        *("cpu", "device", "same bits in any batch"),
        _torch("unified_attention", "split_by_batch"),
        "lse: each alone",
    ),
    "accepts_too_much": Lie("cpu", "device", "1 + w", _torch("rmsnorm", "accepts_too_much")),
    "gives_up": Lie("cpu", "device", "N=7168", _torch("rmsnorm", "gives_up"), "is no power of two"),
    "strides_ignored": Lie("cpu", "device", "slice", _torch("rmsnorm", "strides_ignored")),
    "writes_its_input": Lie("cpu", "device", "", _torch("rmsnorm", "writes_its_input"), "wrote"),
    "writes_past_the_end": Lie(
        "cpu", "device", "", _torch("rmsnorm", "writes_past_the_end"), "after out"
    ),
    "changes_its_mind": Lie("cpu", "device", "", _torch("rmsnorm", "changes_its_mind"), "two runs"),
    "takes_the_process_with_it": Lie(
        "cpu", "device", "7168", _torch("rmsnorm", "takes_the_process_with_it"), "SIGSEGV"
    ),
    "fp8_flavour": Lie("rocm_gfx942", "compiled", "fp8", _claims("fp8", "e4m3fn")),
    "mxfp4_units": Lie("rocm_gfx942", "compiled", "mxfp4", _claims("mxfp4", "native")),
    "more_memory": Lie(
        "rocm_gfx942",
        "contract",
        "no contradiction",
        _claims("shared_memory_bytes", 163840),
        "rocm_gfx942 says 65536",
    ),
    "dependent_launch": Lie("rocm_gfx950", "contract", "no contradiction", _claims("pdl", True)),
    "addresses_in_32_bits": Lie(
        "rocm_gfx950",
        "interpreted",
        "far",
        Liar("rmsnorm", "triton_lies:addresses_in_32_bits", _HEADS),
    ),
    "fnuz_read_as_ocp": Lie(
        "rocm_gfx942",
        "interpreted",
        "",
        Liar("dequantize_sparse_kv", "triton_lies:ocp", _PLAIN),
    ),
    "machine_code_that_reads_ocp": Lie(
        "rocm_gfx942",
        "emulated",
        "",
        Liar("dequantize_sparse_kv", "triton_lies:ocp", _PLAIN),
    ),
    "machine_code_that_goes_astray": Lie(
        "rocm_gfx950",
        "emulated",
        "",
        Liar(
            "dequantize_sparse_kv", "triton_lies:unmasked", (is_("kv_format", "fp8_v32"), *_SLOTS)
        ),
        "outside of every allocation",
    ),
}
"""By name, which is the plugin's variant and its attribute here."""

HONEST = {
    "honest": Lie("cpu", "device", "", _torch("rmsnorm", "honest")),
    "addresses_in_64_bits": Lie(
        "rocm_gfx950",
        "interpreted",
        "",
        Liar("rmsnorm", "triton_lies:addresses_in_64_bits", _HEADS),
    ),
    "fnuz_read_as_fnuz": Lie(
        "rocm_gfx942",
        "interpreted",
        "",
        Liar("dequantize_sparse_kv", "triton_lies:fnuz", _PLAIN),
    ),
    "machine_code_that_reads_fnuz": Lie(
        "rocm_gfx942",
        "emulated",
        "",
        Liar("dequantize_sparse_kv", "triton_lies:fnuz", _PLAIN),
    ),
}
"""The same kernels without the mistake: they pass."""

NEVER_ENDS = Liar("rmsnorm", "lies:never_ends")

globals().update({name: lie.liar for name, lie in {**LIES, **HONEST}.items()})
