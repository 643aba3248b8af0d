# SPDX-License-Identifier: Apache-2.0
"""What is easily done wrong in KDA."""

from __future__ import annotations

import math
from typing import Any

import torch
from tests.conformance._wrong import (
    Mistake,
    Right,
    Values,
    Wrong,
    contiguous,
    given,
    read_in_32_bits,
    written_in_32_bits,
)

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

    def wrong(right: Right, inputs: Values, outputs: Values) -> Values:
        if inputs["use_gate_in_kernel"]:
            keys = "g", "A_log", "dt_bias", "lower_bound"
            (g,) = kda_gate(**{key: inputs[key] for key in keys})
            off = {"use_gate_in_kernel": False, "A_log": None, "dt_bias": None}
            inputs = inputs | off | {"lower_bound": None}
        else:
            g = inputs["g"].float()
        return right(**inputs | {"g": change(g)})

    return wrong


def _naive_softplus(right: Right, inputs: Values, outputs: Values) -> Values:
    """log(1 + exp(x)) with no threshold: infinite from x = 89 on."""
    x, name = (inputs["g"], "g") if "g" in inputs else (inputs["a"], "a")
    if inputs["lower_bound"] is not None or inputs["A_log"] is None:
        return right(**inputs)
    heads = inputs["A_log"].numel()
    raw = x.float().unflatten(-1, (heads, -1)) if name == "a" else x.float()
    if inputs["dt_bias"] is not None:
        raw = raw + inputs["dt_bias"].float().reshape(raw.shape[-2:])
    # Fed back through the identity: softplus(y) = log(1 + exp(x)) for y where it is linear.
    wrong = torch.log(1 + raw.exp())
    back = torch.where(wrong > 20, wrong, torch.log(torch.expm1(wrong)))
    return right(**inputs | {name: back.flatten(-2) if name == "a" else back, "dt_bias": None})


def _l2_eps(eps: float) -> Wrong:
    def wrong(right: Right, inputs: Values, outputs: Values) -> Values:
        flag = "use_qk_l2norm_in_kernel"
        if not inputs[flag]:
            return right(**inputs)

        def unit(x: torch.Tensor) -> torch.Tensor:
            x = x.float()
            return x / (x.square().sum(-1, keepdim=True) + eps).sqrt()

        return right(**inputs | {"q": unit(inputs["q"]), "k": unit(inputs["k"]), flag: False})

    return wrong


def _scale_first(right: Right, inputs: Values, outputs: Values) -> Values:
    """The scale before the norm: the norm takes it away."""
    if inputs["use_qk_l2norm_in_kernel"]:
        return right(**inputs | {"scale": 1.0})
    return right(**inputs)


def _one_chunk_short(right: Right, inputs: Values, outputs: Values) -> Values:
    """What a sequence has beyond its whole chunks of 64 is left out."""
    results = right(**inputs)
    for start, stop in spans(inputs["q"], inputs["cu_seqlens"]):
        rest = slice(start + (stop - start) // 64 * 64, stop)
        results["o"].view(-1, *results["o"].shape[2:])[rest] = 0
    return results


def _one_sequence(right: Right, inputs: Values, outputs: Values) -> Values:
    """Chunks are counted from the first token of the batch, not of each sequence."""
    return right(
        **inputs | {name: None for name in ("cu_seqlens", "chunk_indices") if name in inputs}
    )


def _rows_of_nobody(right: Right, inputs: Values, outputs: Values) -> Values:
    """Rows past the last sequence are left unwritten."""
    results = right(**inputs)
    if inputs["cu_seqlens"] is None:
        return results
    live = int(inputs["cu_seqlens"][-1])
    name = next(iter(outputs))
    outputs[name][:, :live] = results.pop(name)[:, :live].to(outputs[name].dtype)
    return results


def _slots(change: Any) -> Wrong:
    """The slots are other ones; whatever they are called."""

    def wrong(right: Right, inputs: Values, outputs: Values) -> Values:
        name = "state_indices" if "state_indices" in inputs else "ssm_state_indices"
        if inputs[name] is None:
            return right(**inputs)
        return right(**inputs | {name: change(inputs[name])})

    return wrong


def _no_empty_state(right: Right, inputs: Values, outputs: Values) -> Values:
    """A sequence without tokens gets no last state."""
    results, out = right(**inputs), outputs["final_state"]
    if out is None or inputs["state_indices"] is not None:
        return results
    states = results.pop("final_state")
    for n, (start, stop) in enumerate(spans(inputs["q"], inputs["cu_seqlens"])):
        if start < stop:
            out[n] = states[n].to(out.dtype)
    return results


def _other_layout(right: Right, inputs: Values, outputs: Values) -> Values:
    """[K, V] for [V, K] and the other way round, where both have one shape."""
    state = inputs["initial_state"]
    if state is None or state.shape[-1] != state.shape[-2]:
        return right(**inputs)
    results = right(**inputs | {"initial_state": state.mT})
    return results | {"final_state": results["final_state"].mT}


def _no_skipping(right: Right, inputs: Values, outputs: Values) -> Values:
    """Rows of a sequence without a slot are left unwritten."""
    results = right(**inputs)
    name = "state_indices" if "state_indices" in inputs else "ssm_state_indices"
    slots, first = inputs[name], next(iter(outputs))
    if slots is None:
        return results
    rows = outputs[first].flatten(0, 1)
    wanted = results.pop(first).flatten(0, 1)
    for n, (start, stop) in enumerate(spans(outputs[first], inputs.get("cu_seqlens"))):
        if slots.reshape(len(slots), -1)[n, 0] >= 0:
            rows[start:stop] = wanted[start:stop].to(rows.dtype)
    return results


def _first_head(right: Right, inputs: Values, outputs: Values) -> Values:
    """Query head hv % H in the place of hv // (HV / H)."""
    h, hv = inputs["q"].shape[2], inputs["v"].shape[2]
    turn = torch.arange(hv) % h
    return right(**inputs | {"q": inputs["q"][:, :, turn], "k": inputs["k"][:, :, turn]})


def _next_tokens_slot(right: Right, inputs: Values, outputs: Values) -> Values:
    """num_accepted_tokens taken for a column: one too far."""
    accepted, slots = inputs["num_accepted_tokens"], inputs["state_indices"]
    if accepted is None or slots is None or slots.dim() == 1:
        return right(**inputs)
    return right(**inputs | {"num_accepted_tokens": (accepted + 1).clamp_max(slots.shape[1])})


def _decay_late(right: Right, inputs: Values, outputs: Values) -> Values:
    """The state decays after the correction: the gate of the token before."""
    g = inputs["g"].float()
    return right(**inputs | {"g": torch.nn.functional.pad(g, (0, 0, 0, 0, 1, 0))[:, :-1]})


def _natural(right: Right, inputs: Values, outputs: Values) -> Values:
    """Units: a sum in log2 where nats are asked for, and the other way round."""
    return right(**inputs | {"unit": "ln" if inputs["unit"] == "log2" else "log2"})


def _split_exponents(right: Right, inputs: Values, outputs: Values) -> Values:
    """e^G and e^-G apart, in float32, for a chunk of 64 tokens: finite up to 88 nats."""
    results = right(**inputs)
    g = inputs["g"].float()
    for start, stop in spans(g, inputs["cu_seqlens"]):
        for first in range(start, stop, 64):
            rows = slice(first, min(first + 64, stop))
            growth = (-g.flatten(0, 1)[rows].cumsum(0)).exp().amax((1, 2))
            results["o"].flatten(0, 1)[rows] *= (growth / growth)[..., None, None]
    return results


def _by_the_batch(name: str) -> Wrong:
    """The last bits of an output follow from how many sequences there are."""

    def wrong(right: Right, inputs: Values, outputs: Values) -> Values:
        results = right(**inputs)
        if results[name] is not None:
            results[name] = results[name] * (1 + 1e-6 * len(inputs["cu_seqlens"]))
        return results

    return wrong


ANY_BATCH = "same bits in any batch"

_SAME_TOKENS: tuple[tuple[str, str, Wrong], ...] = (
    ("ln 2 missing", "gate units, 20 nats a chunk", _gates(lambda g: g * math.log(2))),
    ("ln 2 twice", "gate units, 20 nats a chunk", _gates(lambda g: g / math.log(2))),
    ("clamped at -5", "steep gates", _gates(lambda g: g.clamp_min(-5))),
    ("gate forgotten", "gate of -5 everywhere", _gates(torch.zeros_like)),
    ("gate of the token before", "gate of -5 everywhere", _decay_late),
    (
        "one gate for all channels",
        "raw gate: dt_bias=extreme, bound=-0.5",
        _gates(lambda g: g[..., :1].expand(g.shape)),
    ),
    ("softplus overflows", "raw gate past float32's exponential", _naive_softplus),
    ("half the bound", "raw gate: bound=-0.5", given(lower_bound=lambda b: b / 2)),
    ("no dt_bias", "raw gate: dt_bias=extreme, bound=-0.5", given(dt_bias=lambda _: None)),
    (
        "one rate for all heads",
        "raw gate: A_log=mixed, bound=-0.5",
        given(A_log=lambda a: a[:1].expand(a.shape)),
    ),
    ("beta not raw", "raw beta", given(use_beta_sigmoid_in_kernel=False)),
    ("beta not doubled", "reflections", given(allow_neg_eigval=False)),
    ("no norm", "norm of q and k", given(use_qk_l2norm_in_kernel=False)),
    ("no eps in the norm", "norm of q and k", _l2_eps(1e-12)),
    ("eps of another size", "norm of q and k", _l2_eps(1e-5)),
    ("scale before the norm", "norm of q and k", _scale_first),
    ("default scale", "scale", given(scale=1.0)),
    ("no rest of a chunk", "length beside a chunk's", _one_chunk_short),
    ("sequences run together", "sequences of no whole chunk", _one_sequence),
    ("rows of nobody unwritten", "rows past the last sequence", _rows_of_nobody),
    ("no last state", "empty sequences", _no_empty_state),
    ("no first state", "state without a last one", given(initial_state=torch.zeros_like)),
    ("the other layout", "state layout: state=bf16", _other_layout),
    ("slots in order", "slots of nobody", _slots(lambda s: torch.arange(len(s)))),
    ("slot 0 for -1", "sequences without a slot: state=bf16", _slots(lambda s: s.clamp_min(0))),
    ("rows unwritten", "sequences without a slot: state=bf16", _no_skipping),
    ("heads in turn", "value heads", _first_head),
    ("q read as contiguous", "strided tokens: heads=2-2", contiguous("q")),
    ("v read as contiguous", "strided tokens: heads=2-2", contiguous("v")),
    ("batch read as contiguous", "strided batch", contiguous("k")),
    ("gate read as contiguous", "strided gate", contiguous("g")),
    ("pool read as contiguous", "strided pool", contiguous("initial_state")),
    ("tokens at 32-bit offsets", "far tokens", read_in_32_bits("k")),
    ("gates at 32-bit offsets", "far tokens", read_in_32_bits("g")),
    ("slots at 32-bit offsets", "far slots", read_in_32_bits("initial_state")),
    ("slots stored at 32 bits", "far slots", written_in_32_bits("final_state")),
    ("states stored at 32 bits", "far states", written_in_32_bits("final_state")),
    ("o at 32-bit offsets", "far tokens", written_in_32_bits("o")),
)

MISTAKES: tuple[Mistake, ...] = (
    *((operator, *row) for operator in FAMILY[:2] for row in _SAME_TOKENS),
    ("chunk_kda", "chunks of 64", "chunks of 32", given(chunk_size=64)),
    (
        "chunk_kda",
        "snapshot after the chunk",
        "snapshots",
        given(track_chunk_idx=lambda i: i + 1),
    ),
    ("chunk_kda", "e^G apart from e^-G", "steep gates", _split_exponents),
    ("chunk_kda", "e^G apart from e^-G", "gate of -5 everywhere", _split_exponents),
    *(
        (
            "chunk_kda",
            f"{name} by the batch",
            "same bits in any batch: h, track",
            _by_the_batch(name),
        )
        for name in ("o", "final_state", "h", "track_state")
    ),
    # Of chunk_kda level accuracy tells it: operands of its products are bfloat16 themselves.
    (
        "fused_recurrent_kda",
        "gate in bfloat16",
        "gate units, 20 nats a chunk",
        _gates(lambda g: g.bfloat16().float()),
    ),
    (
        "fused_recurrent_kda",
        "one column too far",
        "a slot for each token: accepted=mixed",
        _next_tokens_slot,
    ),
    (
        "fused_recurrent_kda",
        "accepted ignored",
        "a slot for each token: accepted=mixed",
        given(num_accepted_tokens=lambda _: None),
    ),
    (
        "fused_recurrent_kda",
        "one slot for all tokens",
        "a slot for each token: accepted=mixed",
        _slots(lambda s: s[:, 0] if s.dim() == 2 else s),
    ),
    (
        "fused_recurrent_kda",
        "slots of tokens at 32 bits",
        "far slots of tokens",
        written_in_32_bits("final_state"),
    ),
    (
        "kda_packed_decode",
        "slot 0 for -1",
        "sequences without a slot: state=bf16",
        _slots(lambda s: s.clamp_min(0)),
    ),
    ("kda_packed_decode", "rows unwritten", "sequences without a slot: state=bf16", _no_skipping),
    (
        "kda_packed_decode",
        "softplus overflows",
        "raw gate past float32's exponential",
        _naive_softplus,
    ),
    ("kda_packed_decode", "half the bound", "gate", given(lower_bound=lambda b: b / 2)),
    ("kda_packed_decode", "default scale", "no norm of q and k", given(scale=128**-0.5)),
    (
        "kda_packed_decode",
        "no norm of q and k",
        "norm of q and k",
        given(use_qk_l2norm_in_kernel=False),
    ),
    (
        "kda_packed_decode",
        "rows read as contiguous",
        "strided rows",
        contiguous("mixed_qkv"),
    ),
    ("kda_packed_decode", "gates read as contiguous", "strided rows", contiguous("a")),
    ("kda_packed_decode", "betas read as contiguous", "strided rows", contiguous("b")),
    (
        "kda_packed_decode",
        "pool read as contiguous",
        "strided pool",
        contiguous("initial_state"),
    ),
    (
        "kda_packed_decode",
        "rows at 32-bit offsets",
        "far rows",
        read_in_32_bits("mixed_qkv"),
    ),
    ("kda_packed_decode", "out at 32-bit offsets", "far out", written_in_32_bits("out")),
    (
        "kda_packed_decode",
        "slots at 32-bit offsets",
        "far slots",
        written_in_32_bits("initial_state"),
    ),
    *(
        (op, "softplus overflows", "raw gate past float32's exponential", _naive_softplus)
        for op in FAMILY[3:]
    ),
    *(
        (op, "no dt_bias", "gate: dt_bias=extreme", given(dt_bias=lambda _: None))
        for op in FAMILY[3:]
    ),
    *((op, "no A_log", "gate: A_log=mixed", given(A_log=torch.zeros_like)) for op in FAMILY[3:]),
    *(
        (op, "half the bound", "bound without A_log", given(lower_bound=lambda b: b / 2))
        for op in FAMILY[3:]
    ),
    *((op, "g read as contiguous", "strided", contiguous("g")) for op in FAMILY[3:]),
    *(
        (op, "g at 32-bit offsets", far, read_in_32_bits("g"))
        for op, far in zip(FAMILY[3:], ("far rows", "far tokens"), strict=True)
    ),
    *(
        (op, "out at 32-bit offsets", far, written_in_32_bits("out"))
        for op, far in zip(FAMILY[3:], ("far rows", "far tokens"), strict=True)
    ),
    ("kda_gate_chunk_cumsum", "units", "rows past the last sequence: unit=log2", _natural),
    (
        "kda_gate_chunk_cumsum",
        "chunks of 64",
        "length beside a chunk's: chunk=32",
        given(chunk_size=64),
    ),
    (
        "kda_gate_chunk_cumsum",
        "sequences run together",
        "sequences of no whole chunk",
        _one_sequence,
    ),
    (
        "kda_gate_chunk_cumsum",
        "rows of nobody unwritten",
        "rows past the last sequence",
        _rows_of_nobody,
    ),
)
