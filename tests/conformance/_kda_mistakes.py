# SPDX-License-Identifier: Apache-2.0
"""What is easily done wrong in KDA: (operator, what is wrong, what its cases are about, kernel)."""

from __future__ import annotations

import math
from typing import Any

import torch
from tests.conformance import _wrong
from tests.conformance._wrong import Wrong, in_32_bits, nothing_past_2_31, packed

from archkey.reference.kda_gate import kda_gate, spans

FAMILY = (
    "chunk_kda",
    "fused_recurrent_kda",
    "kda_packed_decode",
    "kda_gate",
    "kda_gate_chunk_cumsum",
)


def _gates(change: Any) -> Wrong:
    """The finished gate is another one, whether it came raw or not."""

    def wrong(right: Any, given: dict[str, Any], outputs: Any) -> Any:
        if given["use_gate_in_kernel"]:
            keys = "g", "A_log", "dt_bias", "lower_bound"
            (g,) = kda_gate(**{key: given[key] for key in keys})
            off = {"use_gate_in_kernel": False, "A_log": None, "dt_bias": None}
            given = given | off | {"lower_bound": None}
        else:
            g = given["g"].float()
        return right(**given | {"g": change(g)})

    return wrong


def _naive_softplus(right: Any, given: dict[str, Any], outputs: Any) -> Any:
    """log(1 + exp(x)) with no threshold: infinite from x = 89 on."""
    x, name = (given["g"], "g") if "g" in given else (given["a"], "a")
    if given["lower_bound"] is not None or given["A_log"] is None:
        return right(**given)
    heads = given["A_log"].numel()
    raw = x.float().unflatten(-1, (heads, -1)) if name == "a" else x.float()
    if given["dt_bias"] is not None:
        raw = raw + given["dt_bias"].float().reshape(raw.shape[-2:])
    # Fed back through the identity: softplus(y) = log(1 + exp(x)) for y where it is linear.
    wrong = torch.log(1 + raw.exp())
    back = torch.where(wrong > 20, wrong, torch.log(torch.expm1(wrong)))
    return right(**given | {name: back.flatten(-2) if name == "a" else back, "dt_bias": None})


def _l2_eps(eps: float) -> Wrong:
    def wrong(right: Any, given: dict[str, Any], outputs: Any) -> Any:
        flag = "use_qk_l2norm_in_kernel"
        if not given[flag]:
            return right(**given)

        def unit(x: torch.Tensor) -> torch.Tensor:
            x = x.float()
            return x / (x.square().sum(-1, keepdim=True) + eps).sqrt()

        return right(**given | {"q": unit(given["q"]), "k": unit(given["k"]), flag: False})

    return wrong


def _scale_first(right: Any, given: dict[str, Any], outputs: Any) -> Any:
    """The scale before the norm: the norm takes it away."""
    if given["use_qk_l2norm_in_kernel"]:
        return right(**given | {"scale": 1.0})
    return right(**given)


def _one_chunk_short(right: Any, given: dict[str, Any], outputs: Any) -> Any:
    """What a sequence has beyond its whole chunks of 64 is left out."""
    results = list(right(**given))
    for start, stop in spans(given["q"], given["cu_seqlens"]):
        rest = slice(start + (stop - start) // 64 * 64, stop)
        results[0].view(-1, *results[0].shape[2:])[rest] = 0
    return results


def _one_sequence(right: Any, given: dict[str, Any], outputs: Any) -> Any:
    """Chunks are counted from the first token of the batch, not of each sequence."""
    return right(
        **given | {name: None for name in ("cu_seqlens", "chunk_indices") if name in given}
    )


def _rows_of_nobody(right: Any, given: dict[str, Any], outputs: Any) -> Any:
    """Rows past the last sequence are left unwritten."""
    results = right(**given)
    if given["cu_seqlens"] is None:
        return results
    live = int(given["cu_seqlens"][-1])
    first = next(iter(outputs.values()))
    first[:, :live] = results[0][:, :live].to(first.dtype)
    return (None, *results[1:])


def _slots(change: Any) -> Wrong:
    """The slots are other ones; whatever they are called."""

    def wrong(right: Any, given: dict[str, Any], outputs: Any) -> Any:
        name = "state_indices" if "state_indices" in given else "ssm_state_indices"
        if given[name] is None:
            return right(**given)
        return right(**given | {name: change(given[name])})

    return wrong


def _no_empty_state(right: Any, given: dict[str, Any], outputs: Any) -> Any:
    """A sequence without tokens gets no last state."""
    results = list(right(**given))
    out = outputs["final_state"]
    if out is None or given["state_indices"] is not None:
        return results
    for n, (start, stop) in enumerate(spans(given["q"], given["cu_seqlens"])):
        if start < stop:
            out[n] = results[1][n].to(out.dtype)
    results[1] = None
    return results


def _other_layout(right: Any, given: dict[str, Any], outputs: Any) -> Any:
    """[K, V] for [V, K] and the other way round, where both have one shape."""
    state = given["initial_state"]
    if state is None or state.shape[-1] != state.shape[-2]:
        return right(**given)
    results = list(right(**given | {"initial_state": state.mT}))
    results[1] = results[1].mT
    return results


def _no_skipping(right: Any, given: dict[str, Any], outputs: Any) -> Any:
    """Rows of a sequence without a slot are left unwritten."""
    results = right(**given)
    name = "state_indices" if "state_indices" in given else "ssm_state_indices"
    slots, (first, *_) = given[name], outputs.values()
    if slots is None:
        return results
    cu = given.get("cu_seqlens")
    rows = first.flatten(0, 1)
    wanted = results[0].flatten(0, 1)
    for n, (start, stop) in enumerate(spans(first, cu)):
        if slots.reshape(len(slots), -1)[n, 0] >= 0:
            rows[start:stop] = wanted[start:stop].to(rows.dtype)
    return (None, *results[1:])


def _first_head(right: Any, given: dict[str, Any], outputs: Any) -> Any:
    """Query head hv % H in the place of hv // (HV / H)."""
    h, hv = given["q"].shape[2], given["v"].shape[2]
    turn = torch.arange(hv) % h
    return right(**given | {"q": given["q"][:, :, turn], "k": given["k"][:, :, turn]})


def _next_tokens_slot(right: Any, given: dict[str, Any], outputs: Any) -> Any:
    """num_accepted_tokens taken for a column: one too far."""
    accepted, slots = given["num_accepted_tokens"], given["state_indices"]
    if accepted is None or slots is None or slots.dim() == 1:
        return right(**given)
    return right(**given | {"num_accepted_tokens": (accepted + 1).clamp_max(slots.shape[1])})


def _decay_late(right: Any, given: dict[str, Any], outputs: Any) -> Any:
    """The state decays after the correction: the gate of the token before."""
    g = given["g"].float()
    return right(**given | {"g": torch.nn.functional.pad(g, (0, 0, 0, 0, 1, 0))[:, :-1]})


def _natural(right: Any, given: dict[str, Any], outputs: Any) -> Any:
    """Units: a sum in log2 where nats are asked for, and the other way round."""
    return right(**given | {"unit": "ln" if given["unit"] == "log2" else "log2"})


def _split_exponents(right: Any, given: dict[str, Any], outputs: Any) -> Any:
    """e^G and e^-G apart, in float32, for a chunk of 64 tokens: finite up to 88 nats."""
    results = list(right(**given))
    g = given["g"].float()
    for start, stop in spans(g, given["cu_seqlens"]):
        for first in range(start, stop, 64):
            rows = slice(first, min(first + 64, stop))
            growth = (-g.flatten(0, 1)[rows].cumsum(0)).exp().amax((1, 2))
            results[0].flatten(0, 1)[rows] *= (growth / growth)[..., None, None]
    return results


_SAME_TOKENS = (
    ("ln 2 missing", "gate units", _gates(lambda g: g * math.log(2))),
    ("ln 2 twice", "gate units", _gates(lambda g: g / math.log(2))),
    ("gate in bfloat16", "gate units", _gates(lambda g: g.bfloat16().float())),
    ("clamped at -5", "steep gates", _gates(lambda g: g.clamp_min(-5))),
    ("gate forgotten", "gate of -5 everywhere", _gates(torch.zeros_like)),
    ("gate of the token before", "gate of -5 everywhere", _decay_late),
    ("one gate for all channels", "raw gate", _gates(lambda g: g[..., :1].expand(g.shape))),
    ("softplus overflows", "past float32's exponential", _naive_softplus),
    ("half the bound", "raw gate", _wrong.given(lower_bound=lambda b: b / 2)),
    ("no dt_bias", "dt_bias=extreme", _wrong.given(dt_bias=lambda _: None)),
    ("one rate for all heads", "A_log=mixed", _wrong.given(A_log=lambda a: a[:1].expand(a.shape))),
    ("beta not raw", "raw beta", _wrong.given(use_beta_sigmoid_in_kernel=False)),
    ("beta not doubled", "reflections", _wrong.given(allow_neg_eigval=False)),
    ("no norm", "norm of q and k", _wrong.given(use_qk_l2norm_in_kernel=False)),
    ("no eps in the norm", "norm of q and k", _l2_eps(1e-12)),
    ("eps of another size", "norm of q and k", _l2_eps(1e-5)),
    ("scale before the norm", "norm of q and k", _scale_first),
    ("default scale", "scale", _wrong.given(scale=1.0)),
    ("no rest of a chunk", "length beside a chunk's", _one_chunk_short),
    ("sequences run together", "sequences of no whole chunk", _one_sequence),
    ("rows of nobody unwritten", "rows past the last sequence", _rows_of_nobody),
    ("no last state", "empty sequences", _no_empty_state),
    ("no first state", "state without a last one", _wrong.given(initial_state=torch.zeros_like)),
    ("the other layout", "state layout", _other_layout),
    ("slots in order", "slots of nobody", _slots(lambda s: torch.arange(len(s)))),
    ("slot 0 for -1", "without a slot", _slots(lambda s: s.clamp_min(0))),
    ("rows unwritten", "without a slot", _no_skipping),
    ("heads in turn", "value heads", _first_head),
    ("q read as contiguous", "strided tokens", _wrong.given(q=packed)),
    ("v read as contiguous", "strided tokens", _wrong.given(v=packed)),
    ("batch read as contiguous", "strided batch", _wrong.given(k=packed)),
    ("gate read as contiguous", "strided gate", _wrong.given(g=packed)),
    ("pool read as contiguous", "strided pool", _wrong.given(initial_state=packed)),
    ("tokens at 32-bit offsets", "tokens past element 2^31", _wrong.given(k=in_32_bits)),
    ("gates at 32-bit offsets", "tokens past element 2^31", _wrong.given(g=in_32_bits)),
    ("slots at 32-bit offsets", "slots past", _wrong.given(initial_state=in_32_bits)),
    ("slots stored at 32 bits", "slots past", nothing_past_2_31("final_state")),
    ("states stored at 32 bits", "states past", nothing_past_2_31("final_state")),
    ("o at 32-bit offsets", "tokens past element 2^31", nothing_past_2_31("o")),
)

MISTAKES = (
    *((operator, *row) for operator in FAMILY[:2] for row in _SAME_TOKENS),
    ("chunk_kda", "chunks of 64", "chunks of 32", _wrong.given(chunk_size=64)),
    (
        "chunk_kda",
        "snapshot after the chunk",
        "snapshots",
        _wrong.given(track_chunk_idx=lambda i: i + 1),
    ),
    ("chunk_kda", "e^G apart from e^-G", "steep gates", _split_exponents),
    ("chunk_kda", "e^G apart from e^-G", "gate of -5 everywhere", _split_exponents),
    ("fused_recurrent_kda", "one column too far", "slot for each token", _next_tokens_slot),
    (
        "fused_recurrent_kda",
        "accepted ignored",
        "slot for each token",
        _wrong.given(num_accepted_tokens=lambda _: None),
    ),
    (
        "fused_recurrent_kda",
        "one slot for all tokens",
        "slot for each token",
        _slots(lambda s: s[:, 0] if s.dim() == 2 else s),
    ),
    (
        "fused_recurrent_kda",
        "slots of tokens at 32 bits",
        "slots of tokens",
        nothing_past_2_31("final_state"),
    ),
    ("kda_packed_decode", "slot 0 for -1", "without a slot", _slots(lambda s: s.clamp_min(0))),
    ("kda_packed_decode", "rows unwritten", "without a slot", _no_skipping),
    ("kda_packed_decode", "softplus overflows", "past float32's exponential", _naive_softplus),
    ("kda_packed_decode", "half the bound", "gate", _wrong.given(lower_bound=lambda b: b / 2)),
    ("kda_packed_decode", "default scale", "no norm", _wrong.given(scale=128**-0.5)),
    (
        "kda_packed_decode",
        "no norm",
        "norm of q and k",
        _wrong.given(use_qk_l2norm_in_kernel=False),
    ),
    (
        "kda_packed_decode",
        "rows read as contiguous",
        "strided rows",
        _wrong.given(mixed_qkv=packed),
    ),
    ("kda_packed_decode", "gates read as contiguous", "strided rows", _wrong.given(a=packed)),
    ("kda_packed_decode", "betas read as contiguous", "strided rows", _wrong.given(b=packed)),
    (
        "kda_packed_decode",
        "pool read as contiguous",
        "strided pool",
        _wrong.given(initial_state=packed),
    ),
    (
        "kda_packed_decode",
        "rows at 32-bit offsets",
        "rows past",
        _wrong.given(mixed_qkv=in_32_bits),
    ),
    ("kda_packed_decode", "out at 32-bit offsets", "rows of out past", nothing_past_2_31("out")),
    (
        "kda_packed_decode",
        "slots at 32-bit offsets",
        "slots past",
        nothing_past_2_31("initial_state"),
    ),
    *(
        (op, "softplus overflows", "past float32's exponential", _naive_softplus)
        for op in FAMILY[3:]
    ),
    *(
        (op, "no dt_bias", "dt_bias=extreme", _wrong.given(dt_bias=lambda _: None))
        for op in FAMILY[3:]
    ),
    *((op, "no A_log", "A_log=mixed", _wrong.given(A_log=torch.zeros_like)) for op in FAMILY[3:]),
    *(
        (op, "half the bound", "bound without", _wrong.given(lower_bound=lambda b: b / 2))
        for op in FAMILY[3:]
    ),
    *((op, "g read as contiguous", "strided", _wrong.given(g=packed)) for op in FAMILY[3:]),
    *(
        (op, "g at 32-bit offsets", "past element 2^31", _wrong.given(g=in_32_bits))
        for op in FAMILY[3:]
    ),
    *(
        (op, "out at 32-bit offsets", "past element 2^31", nothing_past_2_31("out"))
        for op in FAMILY[3:]
    ),
    ("kda_gate_chunk_cumsum", "units", "unit=log2", _natural),
    ("kda_gate_chunk_cumsum", "chunks of 64", "chunk=32", _wrong.given(chunk_size=64)),
    ("kda_gate_chunk_cumsum", "sequences run together", "no whole chunk", _one_sequence),
    (
        "kda_gate_chunk_cumsum",
        "rows of nobody unwritten",
        "rows past the last sequence",
        _rows_of_nobody,
    ),
)
