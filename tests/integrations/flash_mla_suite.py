# SPDX-License-Identifier: Apache-2.0
"""FlashMLA's own tests of results on archkey, on any target: no times, and no assumption of Hopper.

    git clone https://github.com/deepseek-ai/FlashMLA
    python tests/integrations/flash_mla_suite.py FlashMLA --seconds 60

Its generators, references and bounds are run as they are (needs numpy, rich, triton), case by case
in random order, for so many seconds each of dense decode, sparse decode and sparse prefill. On a
machine without CUDA or HIP its tensors lie on the CPU, and large cases are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import itertools
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import torch
import torch._inductor.config  # before torch.cuda is patched, of which it takes functions
from torch import Tensor

from archkey.integrations import flash_mla


def on_the_cpu() -> None:
    """What the tests call of CUDA does nothing."""
    for name in ("synchronize", "empty_cache", "manual_seed"):
        setattr(torch.cuda, name, nothing())
    Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]


def nothing() -> Callable[..., None]:
    return lambda *args, **kwargs: None


def dense(small: bool) -> Iterator[Callable[[], bool]]:
    """Its grid of correctness cases, and the corner of sequences without keys."""
    import test_flash_mla_dense_decoding as module

    grid = itertools.product(
        [1, 2, 6] if small else [1, 2, 6, 64],
        [1, 2, 4],
        [20, 140] if small else [20, 140, 4096],
        [1, 3, 9, 63, 64, 126, 128],
        [1, 2, 3, 8],
        *[[False, True]] * 3,
        [torch.bfloat16, torch.float16],
    )
    for batch, q_len, length, heads, kv_heads, varlen, causal, empty, dtype in grid:
        if heads % kv_heads == 0:
            case = module.TestParam(
                batch, q_len, length, varlen, causal, test_performance=False,
                have_zero_seqlen_k=empty, h_q=heads, h_kv=kv_heads,
            )  # fmt: skip
            yield lambda case=case, dtype=dtype: _passes(module.test_flash_mla, case, dtype)


def _passes(test: Callable[[Any], None], case: Any, dtype: torch.dtype) -> bool:
    torch.set_default_dtype(dtype)
    try:
        test(case)  # asserts
    finally:
        torch.set_default_dtype(torch.bfloat16)
    return True


def sparse_decode(small: bool) -> Iterator[Callable[[], bool]]:
    """Its cases without times, as it makes them."""
    import test_flash_mla_sparse_decoding as module

    for case in module.gen_testcase():
        large = case.b > 4 or case.topk > 576 or (case.extra_topk or 0) > 576
        if case.num_runs == 0 and not (small and large):
            yield lambda case=case: module.test_flash_mla(case.to_test_param()).is_correct


def sparse_prefill(small: bool) -> Iterator[Callable[[], bool]]:
    """A grid like its own, which stands in its `__main__`."""
    import test_flash_mla_sparse_prefill as module

    sizes = [(128, 128), (592, 128), (1840, 256), (1592, 384), (95, 128), (114, 384), (32, 2048)]
    large = [(1521, 512), (64, 8192), (4321, 4096)]
    for width, heads, (keys, topk), tokens, sinks, lengths, empty in itertools.product(
        [512, 576],
        [64, 128],
        sizes if small else [*sizes, *large],
        [1, 62] if small else [1, 62, 213, 1234],
        *[[False, True]] * 3,
    ):
        case = module.TestParam(
            tokens, keys, topk, h_q=heads, d_qk=width, num_runs=0, have_attn_sink=sinks,
            have_topk_length=lengths, is_all_indices_invalid=empty,
        )  # fmt: skip
        yield lambda case=case: module.run_test(case)


def run(cases: Iterable[Callable[[], bool]], seconds: float) -> tuple[int, int]:
    """How many passed and failed. What a failed one printed is shown."""
    listed, stop, passed, failed = list(cases), time.monotonic() + seconds, 0, 0
    random.Random(0).shuffle(listed)
    for case in listed:
        if time.monotonic() > stop:
            break
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            try:
                right = case()
            except Exception:
                said.write(traceback.format_exc())
                right = False
        passed, failed = passed + right, failed + (not right)
        if not right:
            click.echo(said.getvalue())
    return passed, failed


@dataclasses.dataclass
class Arguments:
    clone: Path
    seconds: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("clone", type=Path, help="a clone of FlashMLA")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each of three kinds")
    asked = Arguments(**vars(parser.parse_args()))
    flash_mla.install()
    sys.path.insert(0, str(asked.clone / "tests"))
    torch.set_default_dtype(torch.bfloat16)
    small = not torch.cuda.is_available()
    if small:
        on_the_cpu()
    else:
        torch.set_default_device("cuda:0")
    worst = 0
    for kind in (dense, sparse_decode, sparse_prefill):
        passed, failed = run(kind(small), asked.seconds)
        click.echo(f"{kind.__name__}: {passed} passed, {failed} failed")
        worst = worst or failed or not passed
    return int(bool(worst))


if __name__ == "__main__":
    raise SystemExit(main())
