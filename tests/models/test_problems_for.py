# SPDX-License-Identifier: Apache-2.0
"""From a model's configuration to the Problems that its calls make, no more and no fewer.

The calls are those of the exam, on real tensors with numbers in them, written by others.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoint import _configs
from tests.models._calls import FP8_CACHE, LISTED

import archkey
from archkey.conformance.cases.mla.inputs import Decode
from archkey.conformance.judge import maker_of
from archkey.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    CheckpointError,
    FrozenError,
    UnknownName,
)
from archkey.models import KNOWN, problems_for
from archkey.models.calls import FAMILIES


@pytest.mark.parametrize("name", LISTED)
def test_prepared_and_frozen_every_real_call_is_served(name: str) -> None:
    """And every Problem but those of serving the cache is one of a real call."""
    options, calls = LISTED[name]
    session = archkey.open("cpu")
    problems = problems_for(name.split()[0], session, tp=8, q_len=4, **options)
    session.prepare(problems)
    session.freeze("error")
    made = set()
    with torch.inference_mode():
        for operator, inputs in calls:
            call = dict(inputs(maker_of(session)))
            made.add(session.problem_of(operator, **call))
            getattr(session, operator)(**call)
    left = {p.operator for p in set(problems) - made}
    assert left <= {"logical_to_physical_indices"}


def test_what_was_not_asked_for_is_an_error_that_says_what_differs() -> None:
    """sglang#26170: prepared for a bfloat16 cache, called with FP8."""
    session = archkey.open("cpu")
    session.prepare(problems_for("deepseek-v3", session, tp=8, q_len=4))
    session.freeze("error")
    call = Decode(16, (5, 70), **FP8_CACHE)(maker_of(session))
    with torch.inference_mode(), pytest.raises(FrozenError) as caught:
        session.mla_decode(**call)
    said = str(caught.value)
    assert "kv_dtype: bfloat16 -> float8_e4m3fn, kv_descale: none -> " in said


def test_asking_is_not_deciding_and_launches_nothing() -> None:
    session = archkey.open("cuda_sm90")
    call = Decode(16, (5, 70))(maker_of(session))
    problem = session.problem_of("mla_decode", **call)
    assert problem.operator == "mla_decode" and problem.heads == 16
    assert not session._plans and not session.degraded
    with pytest.raises(ArgumentTypeError, match="mla_decode: q must be a tensor, found int"):
        session.problem_of("mla_decode", **{**call, "q": 3})
    with pytest.raises(UnknownName, match="did you mean 'mla_decode'"):
        session.problem_of("mla_decod", **call)


# ---- all models, all targets


@pytest.mark.parametrize("target", ["cuda_sm90", "cuda_sm100", "rocm_gfx942", "rocm_gfx950"])
@pytest.mark.parametrize("name", KNOWN)
def test_each_model_on_each_target_in_its_own_fp8(name: str, target: str) -> None:
    session = archkey.open(target)
    for tp in (1, 8):
        plain, packed = (
            problems_for(name, session, tp=tp, q_len=4, kv_dtype=kv, quant="fp8_token")
            for kv in ("auto", "fp8")
        )
        assert len(set(plain)) == len(plain) > 4
        assert set(plain) != set(packed)
        other = {"e4m3fn": "fnuz", "e4m3fnuz": "e4m3fn'"}[session.fp8]
        assert other not in str(packed)
        assert {p.operator for p in plain} >= {"rmsnorm", "fused_add_rmsnorm", "rmsnorm_quant"}
        heads = KNOWN[name]["num_attention_heads"] // tp
        assert {p.heads for p in plain if "attention" in p.operator or "mla" in p.operator} == {
            heads
        }


def test_page_size_verification_and_descale_are_the_callers() -> None:
    session = archkey.open("cuda_sm90")

    def found(field: str, **options: Any) -> set[Any]:
        problems = problems_for("deepseek-v3", session, **options)
        return {getattr(p, field) for p in problems if p.operator == "mla_decode"}

    assert found("page_size", page_size=1) == {1}
    assert found("q_len") == {1}
    assert found("q_len", q_len=3) == {1, 4}, "what 3 runs as"
    assert found("kv_descale", kv_dtype="fp8", descale="number") == {"number"}
    assert found("kv_descale", kv_dtype="fp8") == {"tensor"}
    assert found("dtype", dtype="float16") == {"float16"}


def test_heads_of_keys_are_copied_where_ranks_are_more() -> None:
    session = archkey.open("cuda_sm90")
    for tp, heads in ((1, (64, 8)), (8, (8, 1)), (16, (4, 1))):
        problems = problems_for("llama-3.3-70b", session, tp=tp)
        assert {(p.heads, p.kv_heads) for p in problems if "attention" in p.operator} == {heads}


# ---- configurations of others


@pytest.mark.parametrize("given", ["content", "file", "folder"])
def test_a_config_json(given: str, tmp_path: Path) -> None:
    config = _configs.QWEN3_5_27B
    (tmp_path / "config.json").write_text(json.dumps(config))
    models: dict[str, Any] = {
        "content": config,
        "file": tmp_path / "config.json",
        "folder": str(tmp_path),
    }
    problems = problems_for(models[given], archkey.open("cuda_sm90"), tp=4)
    attention = {p for p in problems if p.operator == "unified_attention"}
    assert {(p.heads, p.kv_heads, p.head_dim, p.dtype) for p in attention} == {
        (6, 1, 256, "bfloat16")
    }


def test_the_tables_agree_with_the_configs_that_checkpoint_is_tested_with() -> None:
    session = archkey.open("cuda_sm90")
    assert problems_for(_configs.DEEPSEEK_V3, session) == problems_for("deepseek-v3", session)
    v32 = {**_configs.DEEPSEEK_V32, "index_topk": 2048}
    assert problems_for(v32, session) == problems_for("deepseek-v3.2", session)
    assert {str(c["model_type"]) for c in KNOWN.values()} <= set(FAMILIES)


@pytest.mark.parametrize(
    ("model", "options", "error", "said"),
    [
        ("deepseek-v33", {}, UnknownName, "did you mean 'deepseek-v3'"),
        ({"model_type": "mamba"}, {}, CheckpointError, "session.problem_of"),
        ({"model_type": "llama"}, {}, CheckpointError, "needs the field 'hidden_size'"),
        ("deepseek-v3", {"tp": 3}, ArgumentValueError, "tp=3 does not divide 128 heads"),
        ("deepseek-v3", {"tp": 0}, ArgumentValueError, "tp must be 1 or more, found 0"),
        ("deepseek-v3", {"kv_dtype": "int8"}, ArgumentValueError, "one of auto, fp8, found 'int8'"),
        ("deepseek-v3", {"dtype": "int8"}, ArgumentValueError, "one of bfloat16, float16"),
        ("deepseek-v3", {"page_size": 7}, ArgumentValueError, "a page size among"),
        ("gpt-oss-120b", {"quant": "fp8_group"}, ArgumentValueError, "a divisor of x's 2880"),
    ],
)
def test_what_is_refused(
    model: Any, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        problems_for(model, archkey.open("cuda_sm90"), **options)


def test_without_a_session_it_is_of_the_first_device(environ: Callable[..., None]) -> None:
    environ(ARCHKEY_TARGET="rocm_gfx942")
    decode = [p for p in problems_for("deepseek-v3", kv_dtype="fp8") if p.operator == "mla_decode"]
    assert {p.kv_dtype for p in decode} == {"float8_e4m3fnuz"}
