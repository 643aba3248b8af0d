# SPDX-License-Identifier: Apache-2.0
"""The counts of level accuracy by themselves: what each sees, and how it is called."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from archkey.conformance.accuracy import Statistic, statistics
from archkey.conformance.accuracy_limits import TABLE, Limit, limit, storage_of
from archkey.conformance.tolerances import ANY

LIMIT = Limit(ANY, ANY, ANY, 1e-2, 1e-3, 1.5e-2, "")
ROWS, HEADS, WIDTH = 600, 3, 128


def truth(seed: int = 0) -> torch.Tensor:
    """Rows of very different sizes: e^-9 to e^9."""
    make = torch.Generator().manual_seed(seed)
    rows = torch.randn(ROWS, HEADS, WIDTH, generator=make, dtype=torch.float64)
    return rows * torch.exp(18 * torch.rand(ROWS, 1, 1, generator=make, dtype=torch.float64) - 9)


def counted(out: torch.Tensor, want: torch.Tensor, name: str = "out") -> list[Statistic]:
    return list(statistics(name, out, want, want.to(out.dtype), LIMIT))


def failed(change: Callable[[torch.Tensor], None]) -> set[str]:
    """What is said of a float32 result after `change`."""
    out = truth().float()
    change(out)
    return {one.told for one in counted(out, truth()) if not one.passed}


def test_one_rounding_is_no_error() -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        found = counted(truth().to(dtype), truth())
        assert [one.value for one in found] == [0.0] * 7
        assert {(one.name, one.over) for one in found} == {
            *(("noise", over) for over in ("row", "window", "head", "columns")),
            *(("bias", over) for over in ("row", "window", "columns")),
        }
    assert found[0].best > 0


def _window(out: torch.Tensor) -> None:
    out[256:512] *= 1.003


def _row(out: torch.Tensor) -> None:
    """By 4 % of its size, in a random direction."""
    noise = torch.randn(HEADS, WIDTH, generator=torch.Generator().manual_seed(3))
    out[77] += 0.04 * noise * out[77].norm(dim=-1, keepdim=True) / WIDTH**0.5


def _small_row(out: torch.Tensor) -> None:
    at = int(truth().norm(dim=(1, 2)).argmin())
    out[at] *= -1


def _head(out: torch.Tensor) -> None:
    out[512:, 2] *= 1.2


def _columns(out: torch.Tensor) -> None:
    out[:256, :, 64:] *= 0.997


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_window, "bias of out over a window (rows 256..511)"),
        (_row, "noise of out over a row (row 77)"),
        (_small_row, "bias of out over a row"),
        (_head, "noise of out over a head (rows 512..599, head 2)"),
        (_columns, "bias of out over columns (rows 0..255, columns 64..127)"),
    ],
)
def test_a_loss_is_told_where_it_is(change: Callable[[torch.Tensor], None], told: str) -> None:
    assert any(one.startswith(told) for one in failed(change)), failed(change)


def test_a_bias_is_no_noise() -> None:
    """A loss of 0.3 % that no limit of noise sees, since sound arithmetic has as much."""
    told = failed(_window)
    assert told
    assert all(one.startswith("bias") for one in told)


def test_random_errors_are_no_bias() -> None:
    """Each number off by up to 0.8 %: within the noise of bfloat16 arithmetic, and of no sign."""
    out = truth().float()
    out *= 1 + 8e-3 * (2 * torch.rand(out.shape, generator=torch.Generator().manual_seed(1)) - 1)
    assert all(one.passed for one in counted(out, truth()))
    bias = next(one for one in counted(out, truth()) if (one.name, one.over) == ("bias", "window"))
    assert bias.value < 1e-4


def test_rows_of_zeros_have_to_be_zero() -> None:
    want = truth()
    want[5], want[9, 1], want[:, :, 64:] = 0, 0, 0
    assert all(one.passed for one in counted(want.float(), want))
    out = want.float()
    out[5, 0, 3] = 1e-30
    assert any(one.value == torch.inf and "row 5" in one.where for one in counted(out, want))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_has_to_be_so(bad: float) -> None:
    out = truth().float()
    out[3, 1, 2] = bad
    assert not all(one.passed for one in counted(out, truth()))


def test_logarithms() -> None:
    """By their differences; where there is no key, both are -inf."""
    want = 5 * torch.randn(ROWS, HEADS, generator=torch.Generator().manual_seed(2)).double()
    want[300] = -torch.inf
    assert all(one.passed for one in counted(want.float(), want, "lse"))
    out = want.float()
    out[400, 2] += 0.06
    (told,) = [one.told for one in counted(out, want, "lse") if not one.passed]
    assert told == "error of lse over a row (row 400)"
    out = want.float()
    out[512:] += 0.004
    (told,) = [one.told for one in counted(out, want, "lse") if not one.passed]
    assert told == "bias of lse over a window (rows 512..599)"
    out[300, 0] = 0.0
    assert any(one.value == torch.inf for one in counted(out, want, "lse"))


def test_integers_have_no_statistics() -> None:
    assert counted(torch.zeros(4, 8, dtype=torch.int32), torch.zeros(4, 8)) == []


def test_limits_are_found_by_what_is_stored() -> None:
    q = torch.zeros(1, dtype=torch.bfloat16)
    packed = {"q": q, "kv_cache": q.view(torch.uint8), "kv_format": "fp8_model1_fnuz"}
    assert storage_of(packed) == "fp8_model1"
    assert storage_of({"q": q, "k": q.to(torch.float8_e4m3fn)}) == "fp8"
    assert storage_of({"q": q, "kv_format": "bf16", "indices": q.int()}) == "bfloat16"
    assert limit("acme", "out", "fp8_v32").noise > limit("acme", "out", "bfloat16").noise
    assert all(row.reason for row in TABLE)
