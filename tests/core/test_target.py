# SPDX-License-Identifier: Apache-2.0
"""Targets: the texts that name them, and which code runs where."""

from __future__ import annotations

import dataclasses
import operator
import subprocess
import sys
from collections.abc import Callable

import pytest

from archkey.errors import TargetError
from archkey.target import KNOWN, Target

parse = Target.parse


@pytest.mark.parametrize(
    ("text", "key", "suffix"),
    [
        ("cuda_sm90", "cuda_sm90", ""),
        ("sm90", "cuda_sm90", ""),
        ("sm_90", "cuda_sm90", ""),
        ("sm_90a", "cuda_sm90", "a"),
        ("cuda_sm90a", "cuda_sm90", "a"),
        ("sm100f", "cuda_sm100", "f"),
        ("sm_100a", "cuda_sm100", "a"),
        ("9.0", "cuda_sm90", ""),
        ("9.0a", "cuda_sm90", "a"),
        ("10.3", "cuda_sm103", ""),
        ("cuda:9.0", "cuda_sm90", ""),
        ("  SM_90A\n", "cuda_sm90", "a"),
        ("gfx950", "rocm_gfx950", ""),
        ("rocm_gfx950", "rocm_gfx950", ""),
        ("GFX90A", "rocm_gfx90a", ""),
        ("gfx950:sramecc+", "rocm_gfx950", "sramecc+"),
        ("gfx942:sramecc+:xnack-", "rocm_gfx942", "sramecc+:xnack-"),
        ("gfx942:xnack-:sramecc+", "rocm_gfx942", "sramecc+:xnack-"),
        ("cpu", "cpu", ""),
        ("acme_x1", "acme_x1", ""),
        ("Acme_X1_lite", "acme_x1_lite", ""),
    ],
)
def test_parse(text: str, key: str, suffix: str) -> None:
    target = parse(text)
    assert (target.key, target.suffix) == (key, suffix)
    assert parse(str(target)) == target
    assert parse(target) is target


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("cuda_sm91", "did you mean 'cuda_sm90'"),
        ("sm_900", "'cuda_sm90'"),
        ("9.1", "'cuda_sm90'"),
        ("gfx940", "'rocm_gfx942'"),
        ("cud_sm90", "did you mean 'cuda_sm90'"),
        ("amd_gfx942", "did you mean 'rocm_gfx942'"),
        ("cpu_x", "did you mean 'cpu'"),
        ("sm80a", "sm80 has no suffix 'a'; it has none"),
        ("sm90f", "sm90 has no suffix 'f'; it has 'a'"),
        ("gfx942:sramecc+:sramecc-", "each of these features once"),
        ("gfx942:fast+", "sramecc"),
        ("gfx1100:xnack+", "none"),
        ("cuda:0", "Accepted: cuda_sm90"),
        ("cuda", "Accepted: cuda_sm90"),
        ("acme", "PLATFORM_ARCH"),
        ("sm 90", "Accepted"),
        ("", "Accepted"),
    ],
)
def test_parse_refuses(text: str, hint: str) -> None:
    with pytest.raises(TargetError) as caught:
        parse(text)
    assert repr(text) in str(caught.value)
    assert hint in str(caught.value)


def test_parse_refuses_what_is_not_text() -> None:
    with pytest.raises(TargetError, match="found 90"):
        parse(90)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", KNOWN)
def test_known_target_describes_itself(key: str) -> None:
    target = parse(key)
    assert target.key == str(target) == key
    assert target.serves(target) and target.is_exact(target) and target.in_family(target)
    assert target.family.family == target.family
    assert target.family.serves(target)
    assert target.to_json()["key"] == key


@pytest.mark.parametrize(
    ("text", "vendor", "family", "capability", "triton"),
    [
        ("sm_90a", "nvidia", "cuda_sm90", (9, 0), ("cuda", 90, 32)),
        ("sm100", "nvidia", "cuda_sm100", (10, 0), ("cuda", 100, 32)),
        ("sm103", "nvidia", "cuda_sm100", (10, 3), ("cuda", 103, 32)),
        ("sm121", "nvidia", "cuda_sm120", (12, 1), ("cuda", 121, 32)),
        ("gfx942", "amd", "rocm_gfx942", None, ("hip", "gfx942", 64)),
        ("gfx950:xnack-", "amd", "rocm_gfx950", None, ("hip", "gfx950", 64)),
        ("gfx1201", "amd", "rocm_gfx1201", None, ("hip", "gfx1201", 32)),
        ("cpu", "cpu", "cpu", None, None),
        ("acme_x1", "acme", "acme_x1", None, None),
    ],
)
def test_derived(
    text: str,
    vendor: str,
    family: str,
    capability: tuple[int, int] | None,
    triton: tuple[str, int | str, int] | None,
) -> None:
    target = parse(text)
    assert target.vendor == vendor
    assert target.family.key == family
    assert target.compute_capability == capability
    assert target.triton_backend == triton


@pytest.mark.parametrize(
    ("code", "hardware", "runs"),
    [
        ("sm90", "sm90", True),
        ("sm_90a", "sm90", True),
        ("sm_90a", "sm100", False),
        ("sm90", "sm100", False),
        ("sm80", "sm86", False),
        ("sm100", "sm103", True),
        ("sm103", "sm100", False),
        ("sm_100f", "sm103", True),
        ("sm_103f", "sm100", False),
        ("sm_100a", "sm103", False),
        ("sm_100f", "sm120", False),
        ("sm100", "sm120", False),
        ("sm100", "sm110", False),
        ("sm120", "sm121", True),
        ("sm90", "gfx942", False),
        ("gfx942", "gfx942:sramecc+:xnack-", True),
        ("gfx942:xnack-", "gfx942:sramecc+:xnack-", True),
        ("gfx942:xnack+", "gfx942:sramecc+:xnack-", False),
        ("gfx942:xnack-", "gfx942", False),
        ("gfx942", "gfx950", False),
        ("gfx90a", "gfx942", False),
        ("acme_x1", "acme_x1", True),
        ("acme_x1", "acme_x2", False),
        ("cpu", "sm90", False),
    ],
)
def test_serves(code: str, hardware: str, runs: bool) -> None:
    assert parse(code).serves(parse(hardware)) is runs


def test_exact_and_family() -> None:
    assert parse("sm_90a").is_exact(parse("sm90"))
    assert not parse("sm100").is_exact(parse("sm103"))
    assert parse("sm103").in_family(parse("sm100")) and parse("sm100").in_family(parse("sm103"))
    assert not parse("sm120").in_family(parse("sm100"))
    assert not Target("acme", "sm100").in_family(parse("sm100"))


@pytest.mark.parametrize("compare", [operator.lt, operator.le, operator.gt, operator.ge])
def test_targets_have_no_order(compare: Callable[[Target, Target], bool]) -> None:
    with pytest.raises(TypeError):
        compare(parse("sm90"), parse("sm100"))


def test_a_target_is_a_value() -> None:
    assert {parse("sm_90"): 1}[parse("cuda_sm90")] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse("sm90").arch = "sm100"  # type: ignore[misc]


def test_newer_than_the_table() -> None:
    """The probe can name a chip which the table does not have; text cannot."""
    target = Target("cuda", "sm130")
    assert target.key == "cuda_sm130"
    assert target.family == target and target.serves(target)
    assert target.compute_capability == (13, 0)
    assert target.triton_backend is None
    assert not parse("sm120").serves(target)


def test_import_needs_no_torch() -> None:
    code = "import sys, archkey.target; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
