# SPDX-License-Identifier: Apache-2.0
"""The Problems of an engine's steps, from its shapes, before the first of them runs.

A Problem is all that archkey knows of a call before the numbers. An engine with static shapes has
few: batch size, lengths and number of pages are in none of them. Prepared at start, nothing is
compiled while a user waits; after `freeze`, a call that was forgotten here is an error that prints
its Problem.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from tests.engine_example.model import Decoder
from tests.engine_example.pool import Pool

import archkey

QUERIES = ("decode", "verify", "prefill")
"""One query a sequence, a few, many: a chunk of a prompt can be any of them."""


def of_steps(session: archkey.Session, decoders: Iterable[Decoder], pool: Pool) -> Iterator[Any]:
    """All of an engine."""
    for decoder in decoders:
        yield from of_decoder(session, decoder, pool.page_size)
    yield from of_page_tables(session, pool)


def of_decoder(session: archkey.Session, decoder: Decoder, page_size: int) -> Iterator[Any]:
    """What one forward pass calls, whatever its batch."""
    c, model = decoder.config, decoder.model
    dtype = name(model.embedding)
    norm = {"weight_dtype": dtype, "out_dtype": dtype, "width": c.hidden}
    norm |= {"dtype": dtype, "pdl": session.pdl}
    yield make(session, "rmsnorm", norm)
    yield make(session, "fused_add_rmsnorm", norm | {"residual_dtype": dtype})
    for layer in {layer.kind: layer for layer in model.layers}.values():
        # A batch-invariant kernel may not look at how many queries there are, so it is one.
        for queries in ("any",) if decoder.batch_invariant else QUERIES:
            yield make(
                session,
                "unified_attention",
                {
                    "dtype": dtype,
                    "kv_dtype": dtype,
                    "out_dtype": dtype,
                    "heads": c.heads,
                    "kv_heads": c.kv_heads,
                    "head_dim": c.head_dim,
                    "head_dim_v": c.head_dim,
                    "page_size": page_size,
                    "queries": queries,
                    "window": layer.kind == "window",
                    "softcap": c.softcap > 0,
                    "sinks": "none" if layer.sinks is None else name(layer.sinks),
                    "batch_invariant": decoder.batch_invariant,
                },
            )


def of_page_tables(session: archkey.Session, pool: Pool) -> Iterator[Any]:
    """From the table of requests in a captured round, from ragged lists in a mixed step."""
    shared = {"page_size": pool.page_size, "swa": pool.full_to_swa is not None}
    yield make(
        session,
        "req_to_token_to_page_table",
        {"tokens_dtype": "int32", "indices_dtype": "int64", "lens_dtype": "int32", **shared},
    )
    yield make(
        session,
        "ragged_kv_indices_to_page_table",
        {"indices_dtype": "int32", "indptr_dtype": "int32", **shared},
    )


def make(session: archkey.Session, operator: str, fields: dict[str, Any]) -> Any:
    """A Problem of `operator`; fields that are not given have their defaults."""
    return session.operators[operator].problem(**fields)


def name(tensor: torch.Tensor) -> str:
    """A dtype as archkey spells it: "bfloat16"."""
    return str(tensor.dtype).removeprefix("torch.")
