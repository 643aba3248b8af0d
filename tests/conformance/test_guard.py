# SPDX-License-Identifier: Apache-2.0
"""The room around a kernel's tensors: what lies in it, and what is found when it is entered."""

from __future__ import annotations

import pytest
import torch

from archkey.conformance.case import Maker
from archkey.conformance.guard import Guarded, poison
from archkey.conformance.tolerances import TABLE, bound, distance, windows

DTYPES = (
    torch.bfloat16,
    torch.float16,
    torch.float32,
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.int32,
    torch.int64,
    torch.uint8,
)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_copy_has_values_strides_and_alignment(dtype: torch.dtype) -> None:
    whole = torch.arange(7 * 40).to(dtype).view(7, 40)
    view = whole[1:6, 3:19]
    guarded = Guarded(["x"], [view], outputs=0)
    (copy,) = guarded.arguments
    assert copy.stride() == view.stride()
    assert copy.data_ptr() % 256 == view.data_ptr() % 256
    assert torch.equal(copy.view(torch.uint8), view.contiguous().view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
def test_neighbours_are_poisoned(dtype: torch.dtype) -> None:
    """Before, after, and in the gap between two rows."""
    view = torch.ones(4, 8).to(dtype)[:, :6]
    (copy,) = Guarded(["x"], [view], outputs=0).arguments
    for offset in (-1, 6, 3 * 8 + 6, -1000, 3 * 8 + 1000):
        beside = copy.as_strided((1,), (1,), copy.storage_offset() + offset)
        if dtype.is_floating_point:
            assert beside.float().isnan().all(), offset
        elif dtype == torch.uint8:
            assert beside.item() == 0xFF
        else:
            assert beside.item() == 2147480000


def test_aliasing_is_kept() -> None:
    pool = torch.zeros(10, 4)
    read, written = pool[2:6], pool[4:8]
    guarded = Guarded(["read", "written"], [read, written], outputs=1)
    guarded.arguments[1].fill_(5.0)
    assert guarded.arguments[0][2:].eq(5.0).all()
    assert pool.eq(0).all(), "the original is left alone"


def test_expanded_tensors_are_copied_once() -> None:
    wide = torch.arange(3.0)[:, None].expand(3, 1000)
    (copy,) = Guarded(["scale"], [wide], outputs=0).arguments
    assert copy.stride() == (1, 0)
    assert torch.equal(copy, wide)


@pytest.mark.parametrize(
    ("offset", "place"), [(-1, "before"), (16, "after"), (5, "inside"), (-3000, "before")]
)
def test_a_write_beside_the_output_is_found(offset: int, place: str) -> None:
    out = torch.zeros(4, 4)[:, :3].fill_(1.0)
    guarded = Guarded(["out"], [out], outputs=1)
    (copy,) = guarded.arguments
    guarded.watch()
    copy.fill_(2.0)
    assert guarded.trespass() == ""
    at = {5: 3}.get(offset, offset)  # the gap after the first row
    copy.as_strided((1,), (1,), copy.storage_offset() + at).fill_(0.0)
    assert place in guarded.trespass()
    assert "out" in guarded.trespass()


def test_a_changed_input_is_found() -> None:
    guarded = Guarded(["x", "out"], [torch.zeros(8), torch.zeros(8)], outputs=1)
    guarded.watch()
    guarded.arguments[1].fill_(1.0)
    assert not guarded.trespass()
    guarded.arguments[0][3] = 1.0
    assert "inside x" in guarded.trespass()


def test_a_far_tensor_stays_untouched_memory_and_is_guarded() -> None:
    far = Maker().far(torch.ones(4, 64), 0)
    assert far.stride(0) * 3 >= 2**31
    guarded = Guarded(["x"], [far], outputs=1)
    (copy,) = guarded.arguments
    assert torch.equal(copy, far)
    guarded.watch()
    assert not guarded.trespass()
    copy.as_strided((1,), (1,), copy.storage_offset() - 1).fill_(0.0)
    assert "x" in guarded.trespass()


@pytest.mark.parametrize("dtype", DTYPES)
def test_poison_is_nan_or_out_of_range(dtype: torch.dtype) -> None:
    tensor = torch.zeros(5).to(dtype)
    poison(tensor)
    if dtype.is_floating_point:
        assert tensor.float().isnan().all()
    else:
        assert tensor.ne(0).all()


def test_one_wrong_row_does_not_drown() -> None:
    want = torch.randn(10_000, 64, generator=torch.Generator().manual_seed(0))
    got = want.clone()
    got[1234] = 0.0
    assert (got - want).norm() / want.norm() < 0.02
    assert distance(got, want) == pytest.approx(0.5)


def test_a_logarithm_near_0_is_not_measured_by_itself() -> None:
    want = torch.tensor([[1e-6, 5.0]])
    got = want + 1e-5
    assert distance(got, want, "lse") == pytest.approx(1e-5, rel=0.1)
    assert distance(got[:, :1], want[:, :1], "out") > 1.0
    assert distance(want / 0.6931, want, "lse") > 0.4, "base 2"


def test_one_wrong_row_of_codes_does_not_drown() -> None:
    want = torch.zeros(10_000, 64, dtype=torch.uint8)
    got = want.clone()
    got[1234] = 1
    assert distance(got, want) == pytest.approx(0.05)


def test_windows_of_tokens() -> None:
    """Each by itself, of each batch entry; the last one ends with the last token."""
    want = torch.randn(2, 700, 3, 64, generator=torch.Generator().manual_seed(0))
    want[1, 256:512] *= 1e-6
    seen = (100 / 256) ** 0.5  # of the last window, 444 to 699
    for b, begin, end, error in ((0, 0, 256, 1.0), (1, 256, 512, 1.0), (0, 600, 700, seen)):
        got = want.clone()
        got[b, begin:end] *= 2
        assert windows(got, want) == pytest.approx(error, rel=0.02)
        assert distance(got, want) < 0.51
    assert windows(want, want) == 0.0
    assert windows(2 * want[:, :255], want[:, :255]) == 0.0, "the whole is measured as it is"
    want[0, :256] = 0
    got = want.clone()
    got[0, 7, 0, 0] = torch.nan
    assert windows(got, want) == float("inf")


def test_infinities_and_nan_stand_where_they_must() -> None:
    want = torch.tensor([[1.0, -torch.inf], [torch.nan, 2.0]])
    assert distance(want.clone(), want) == 0.0
    for row, column, value in ((0, 1, torch.inf), (0, 1, 0.0), (1, 0, 1.0), (0, 0, torch.nan)):
        got = want.clone()
        got[row, column] = value
        assert distance(got, want) == float("inf")


def test_every_bound_has_a_reason_and_can_be_reached() -> None:
    for number, row in enumerate(TABLE):
        assert len(row.reason.split()) >= 3
        for before in TABLE[:number]:
            covers = all(mine in ("*", its) for mine, its in zip(before[:4], row[:4], strict=True))
            assert not covers, f"{row} is never reached"


def test_a_bound_depends_on_operator_format_and_level() -> None:
    bf16 = torch.bfloat16
    assert bound("rmsnorm", "out", bf16, "interpreted").value == 8e-3
    assert bound("rmsnorm", "out", bf16, "device").value == 4e-3
    assert bound("rmsnorm", "out", torch.int32, "device").value == 0.0
    fp8 = torch.float8_e4m3fn
    assert bound("rmsnorm_quant", "out", fp8, "device").value < bound("x", "out", fp8, "any").value
