# SPDX-License-Identifier: Apache-2.0
"""Which Problems a model has: from its configuration to what `session.prepare` takes.

    session.prepare(archkey.problems_for("deepseek-v3.2", session, tp=8, q_len=4))

Each Problem is made by the operator itself, from a call on tensors without memory
(`Session.problem_of`): there is no second copy of its rules. Only the table of the calls that a
model type makes is here (`archkey.models.calls`). An engine that calls otherwise, with other
layouts or scales, asks for its own calls: `session.problem_of("mla_decode", q=..., ...)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archkey._torch import torch
from archkey.checkpoint.reading import config_of, dtype_of, text_config
from archkey.errors import ArgumentValueError, CheckpointError, UnknownName, nearest
from archkey.models.calls import FAMILIES, Terms
from archkey.models.known import KNOWN
from archkey.session import open as open_session

if TYPE_CHECKING:
    from archkey.ops import Problem
    from archkey.session import Session

__all__ = ["DESCALES", "DTYPES", "KNOWN", "KV_DTYPES", "problems_for"]

DTYPES = ("bfloat16", "float16")
KV_DTYPES = ("auto", "fp8")
DESCALES = ("tensor", "number", "heads")


def problems_for(
    model: str | Path | Mapping[str, Any],
    session: Session | None = None,
    *,
    tp: int = 1,
    dtype: str | None = None,
    kv_dtype: str = "auto",
    page_size: int = 64,
    q_len: int = 1,
    quant: str = "",
    descale: str = "tensor",
) -> list[Problem]:
    """The Problems of one rank of `model`, each once, in the order in which a step calls them.

    model      a name in `archkey.models.KNOWN`, a config.json, its folder, or its content
    session    of the device that will run it; default: the first device of this machine
    tp         ranks that share the heads
    dtype      of activations; default: the config's
    kv_dtype   "auto": that one; "fp8": the device's FP8, for sparse MLA its packed rows
    page_size  tokens a page of the cache
    q_len      tokens that a verification has a sequence; 1: no speculation
    quant      a kind of `rmsnorm_quant` that the norms feed, such as "fp8_group" or "mxfp4"
    descale    how an FP8 cache's scale is passed: "tensor" of one element, "number", or "heads"

    Raises UnknownName for a name that is not known, CheckpointError for a config that cannot be
    read or whose model_type has no table, ArgumentError where an operator refuses such a call.
    """
    session = session or open_session()
    config = _config(model)
    text = text_config(config)
    kind = str(text.get("model_type"))
    if kind not in FAMILIES:
        raise CheckpointError(
            f"config.json: model_type: found {kind!r}; {nearest(kind, FAMILIES)}. For another "
            "model pass session.problem_of(...) of each of its calls to session.prepare()"
        )
    for name, given, known in (
        ("dtype", dtype or dtype_of(config), DTYPES),
        ("kv_dtype", kv_dtype, KV_DTYPES),
        ("descale", descale, DESCALES),
    ):
        if given not in known:
            raise ArgumentValueError(f"{name} must be one of {', '.join(known)}, found {given!r}")
    for name, number in (("tp", tp), ("page_size", page_size), ("q_len", q_len)):
        if number < 1:
            raise ArgumentValueError(f"{name} must be 1 or more, found {number}")
    fp8 = "e4m3fn" if session.fp8 == "any" else session.fp8
    terms = Terms(tp, dtype or dtype_of(config), kv_dtype, page_size, q_len, quant, descale, fp8)
    found: dict[Problem, None] = {}
    with torch.inference_mode():
        try:
            for family in FAMILIES[kind]:
                for operator, call in family(text, terms):
                    found[session.problem_of(operator, **call)] = None
        except KeyError as error:
            raise CheckpointError(
                f"config.json: a {kind} needs the field {error}, which is not there"
            ) from None
    return list(found)


def _config(model: str | Path | Mapping[str, Any]) -> Mapping[str, Any]:
    """The content of a config.json."""
    if isinstance(model, str) and not Path(model).exists():
        if model not in KNOWN:
            hint = "A path to a config.json is taken, too."
            raise UnknownName("model", model, KNOWN, hint)
        return KNOWN[model]
    return config_of(model)
