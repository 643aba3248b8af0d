# SPDX-License-Identifier: Apache-2.0
"""fla's own tests of Kimi Delta Attention on archkey, on any target: results, and no gradients.

    git clone https://github.com/fla-org/flash-linear-attention
    python tests/integrations/fla_suite.py flash-linear-attention [PYTEST OPTION...]

Its parametrisations, inputs, references and bounds are run as they are (needs einops, triton and
pytest): what it compares a kernel with is computed by fla's code in torch, the kernel by archkey.
Where fla compares two calls of a kernel, both are archkey's. On a machine without CUDA or HIP its
tensors lie on the CPU, and cases that take a minute there are left out.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from archkey.integrations import fla as ours

OTHERS = {
    "test_naive_chunk": "its references against each other",
    "test_chunk_invalid_chunk_size": "the text of an error; archkey's is a ValueError too",
    "test_flash_kda_chunk": "another library",
    "test_flash_kda_chunk_varlen": "another library",
    "test_triton_ascend_backend_routing": "another library",
}
"""What is not about results of fla's functions, and why."""

LARGE = ("T8192", "8192]", "test_fused_recurrent_vllm_decode")
"""What is left out without a GPU: minutes each; or, of the last, tensors that are made on one."""


def without_gradients() -> None:
    """Calls of the tests that are about gradients do nothing, and all gradients are zero."""
    zero = property(torch.zeros_like, lambda self, value: None)
    doing: dict[str, Any] = {
        "requires_grad_": lambda self, *args, **kwargs: self,
        "backward": lambda self, *args, **kwargs: None,
        "grad": zero,
    }
    for name, value in doing.items():
        setattr(torch.Tensor, name, value)


def of_results(compare: Callable[..., None]) -> Callable[..., None]:
    """fla's comparison, but of gradients: those are called dq, dA, .."""

    def compared(name: str, *arguments: Any, **options: Any) -> None:
        if not name.startswith("d"):
            compare(name, *arguments, **options)

    return compared


class Chosen:
    """Leaves out what this module says, and says so."""

    def __init__(self, small: bool) -> None:
        self.small = small

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        for item in items:
            reason = OTHERS.get(item.originalname)
            if self.small and any(text in item.nodeid for text in LARGE):
                reason = "needs a GPU"
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("clone", type=Path, help="a clone of flash-linear-attention")
    asked, options = parser.parse_known_args()
    small = not torch.cuda.is_available()
    os.environ["FLA_CI_ENV"] = "0"  # with it, errors up to 0.01 would be warnings
    sys.path.insert(0, str(asked.clone))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without a GPU fla says so
        import fla.utils as theirs
    if small:
        theirs.device = "cpu"
        for name in ("synchronize", "empty_cache"):  # after each test
            setattr(torch.cuda, name, lambda *args: None)
    theirs.assert_close = of_results(theirs.assert_close)
    without_gradients()
    ours.install()
    if sys.modules["fla.ops.kda"].chunk_kda is not ours.chunk_kda:
        raise SystemExit("fla's own functions are still in their place")
    test = asked.clone / "tests/ops/test_kda.py"
    line = ["-q", "-rs", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir", str(asked.clone)]
    return int(pytest.main([*line, *options, str(test)], plugins=[Chosen(small)]))


if __name__ == "__main__":
    raise SystemExit(main())
