# SPDX-License-Identifier: Apache-2.0
"""What runs a scheme on which target, and why."""

from __future__ import annotations

from typing import Any

import pytest
from tests.checkpoint import _configs as c

import archkey
from archkey import checkpoint

TARGETS = ("cuda_sm90", "cuda_sm100", "rocm_gfx942", "rocm_gfx950")
TOKEN = c.args(8, "token", dynamic=True)

# description -> levels on TARGETS: n(ative), e(mulated)
LEVELS: dict[str, tuple[dict[str, Any], str]] = {
    "mxfp4": (c.quark(), "enen"),
    "mxfp4 weights alone": (c.quark(default=c.specs(c.mx(dynamic=False))), "eeee"),
    "nvfp4": (c.modelopt("NVFP4"), "enee"),
    "nvfp4 weights alone": (c.modelopt("W4A16_NVFP4"), "eeee"),
    "mxfp8": (c.modelopt("MXFP8"), "enen"),
    "fp8": (c.compressed(c.args(8, "channel"), TOKEN), "nnnn"),
    "fp8 in blocks": (c.DEEPSEEK_FP8, "nnnn"),
    "fp8 weights alone": (c.modelopt("FP8_PB_WO"), "eeee"),
    "not quantised": (c.quark("*"), "nnnn"),
}


def verdict(description: dict[str, Any], target: str) -> checkpoint.Verdict:
    scheme = checkpoint.read({"quantization_config": description}).scheme("m.down_proj")
    return checkpoint.decide(archkey.open(target), scheme, 4096, 7168)


@pytest.mark.parametrize("what", LEVELS)
def test_levels(what: str) -> None:
    description, levels = LEVELS[what]
    found = [verdict(description, target) for target in TARGETS]
    assert "".join(v.level[0] for v in found) == levels
    assert all(v.reason for v in found)


def test_mxfp4_names_the_kernel_that_would_run() -> None:
    packed = {target: verdict(c.quark(), target).kernel for target in (*TARGETS, "cpu")}
    assert packed == {
        "cuda_sm90": "cuda_sm90:triton",
        "cuda_sm100": "cuda_sm100:triton_scaled",
        "rocm_gfx942": "rocm_gfx942:triton",
        "rocm_gfx950": "rocm_gfx950:triton_scaled",
        "cpu": "cpu:torch",
    }
    alone = c.quark(default=c.specs(c.mx(dynamic=False)))
    assert verdict(alone, "rocm_gfx950").kernel == "rocm_gfx950:triton"
    assert not verdict(c.DEEPSEEK_FP8, "cuda_sm90").kernel, "no operator of ours"


def test_reasons_are_the_capabilities_own() -> None:
    for target in TARGETS:
        fact = archkey.open(target).capabilities["mxfp4"]
        assert verdict(c.quark(), target).reason == f"mxfp4: {fact.reason}"
    alone = verdict(c.quark(default=c.specs(c.mx(dynamic=False))), "rocm_gfx950")
    assert alone.reason == "weights are decoded first: activations are not quantised"
    mixed = c.quark(default=c.specs(c.mx(dynamic=False), c.fp8("per_tensor")))
    assert verdict(mixed, "rocm_gfx950").reason.endswith("activations are fp8")


def test_ocp_codes_are_converted_for_gfx942_alone() -> None:
    for target in TARGETS:
        convert = verdict(c.DEEPSEEK_FP8, target).convert
        assert bool(convert) is (target == "rocm_gfx942")
    convert = verdict(c.DEEPSEEK_FP8, "rocm_gfx942").convert
    assert "0x80" in convert and "scales are doubled" in convert


def test_the_conversion_that_is_said_keeps_each_value() -> None:
    import torch

    codes = torch.arange(256, dtype=torch.int16).to(torch.uint8)
    codes = codes[(codes & 0x7F) != 0x7F]  # NaN of e4m3fn
    right = codes.view(torch.float8_e4m3fn).float()
    converted = torch.where(codes == 0x80, 0, codes).to(torch.uint8)
    assert torch.equal(converted.view(torch.float8_e4m3fnuz).float() * 2.0, right)


@pytest.mark.parametrize("what", LEVELS)
def test_hardware_without_a_plugin_runs_nothing(what: str) -> None:
    description, _ = LEVELS[what]
    found = verdict(description, "cuda_sm75")
    assert found.level == "unsupported"
    assert ("E8M0" if what == "mxfp8" else "no plugin for cuda_sm75") in found.reason


def test_the_cpu_computes_what_it_decodes() -> None:
    assert verdict(c.quark(), "cpu").level == "emulated"
