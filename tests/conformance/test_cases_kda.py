# SPDX-License-Identifier: Apache-2.0
"""The cases of KDA: each wrong kernel fails where it is named."""

from __future__ import annotations

import pytest
from tests.conformance import _wrong
from tests.conformance._mistakes_kda import MISTAKES
from tests.conformance._wrong import Wrong


@_wrong.each(MISTAKES)
def test_a_wrong_kernel_fails_by_name(
    operator: str, about: str, wrong: Wrong, monkeypatch: pytest.MonkeyPatch
) -> None:
    _wrong.check(monkeypatch, operator, about, wrong)
