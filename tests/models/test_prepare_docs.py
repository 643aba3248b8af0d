# SPDX-License-Identifier: Apache-2.0
"""The Python of core/docs/prepare.md runs, and its message is the one that is raised."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from archkey.errors import FrozenError


def test_the_page(root: Path) -> None:
    page = (root / "core/docs/prepare.md").read_text()
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(block, names)
    assert names["problem"].kv_dtype == "bfloat16"
    session = names["session"]
    session.thaw()
    session.prepare([names["problem"], names["problem"]._replace(q_len=4)])
    session.freeze("error")
    q, table, lens = names["q"], names["table"], names["lens"]
    scales = {"softmax_scale": 0.1, "kv_descale": torch.empty(1, device="meta")}
    cache = names["cache"].to(torch.float8_e4m3fn)
    with pytest.raises(FrozenError) as caught:
        session.mla_decode(q, cache, table, lens, **scales)
    said = str(caught.value)
    shown = " ".join(re.findall(r"(?m)^    (MlaDecodeProblem.*(?:\n    .*)*)", page)[0].split())
    for part in shown.split("..."):
        assert part.strip(" ,.") in said, said
