# SPDX-License-Identifier: Apache-2.0
"""flash-linear-attention's functions of Kimi Delta Attention on archkey's operators.

    from archkey.integrations import fla
    fla.install()                        # for good; or for a while:
    with fla.routed():
        model.generate(**tokens)

fla's own layers and models, transformers' Kimi-Linear, and modelling code that imported fla's
functions call archkey then. Names, order of arguments, defaults and layouts are those of
flash-linear-attention 0.6.0; the functions here can be called without that being installed.

What fla takes and archkey's operators do not ask for: tokens whose last dimension is strided are
copied, and A_log, dt_bias and lower_bound without use_gate_in_kernel, like keywords that it does
not know, have no effect. Sequences may be empty, and a negative slot is padding, which fla leaves
undefined. Inference only: there is no backward pass. Errors are archkey's (`ArgumentError`,
`Unsupported`).
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import archkey
from archkey.errors import MissingDependency

if TYPE_CHECKING:
    import torch
else:
    from archkey._torch import torch

__all__ = [
    "chunk_kda",
    "fused_kda_gate",
    "fused_recurrent_kda",
    "fused_recurrent_kda_fwd",
    "install",
    "routed",
]


def chunk_kda(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    scale: float | None = None,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    safe_gate: bool = False,
    lower_bound: float | None = None,
    disable_recompute: bool = False,
    return_intermediate_states: bool = False,
    state_v_first: bool = False,
    cu_seqlens: torch.Tensor | None = None,
    cu_seqlens_cpu: torch.Tensor | None = None,
    cp_context: Any = None,
    use_graph: bool = False,
    max_num_seqs: int | None = None,
    **kwargs: Any,
) -> Any:
    """KDA for prefill: `archkey.chunk_kda`, where the arguments are described.

    use_graph   the number of chunks is the most that the shapes allow, as in fla; max_num_seqs is
                the number of sequences anyway
    kwargs      A_log, dt_bias, chunk_size, transpose_state_layout (the old name of state_v_first)

    Returns (o, final_state), with return_intermediate_states (o, final_state, h).
    """
    exact = return_intermediate_states and not use_graph
    if exact and cu_seqlens is not None and cu_seqlens_cpu is None:
        cu_seqlens_cpu = cu_seqlens.cpu()  # for the shape of h; fla waits for it in every call
    gate = _gate(use_gate_in_kernel, kwargs.get("A_log"), kwargs.get("dt_bias"), lower_bound)
    return archkey.chunk_kda(
        *_readable(q, k, v, g, beta),
        scale,
        initial_state,
        output_final_state,
        use_qk_l2norm_in_kernel,
        use_gate_in_kernel,
        use_beta_sigmoid_in_kernel,
        allow_neg_eigval,
        safe_gate,
        gate.lower_bound,
        disable_recompute,
        return_intermediate_states,
        state_v_first,
        cu_seqlens,
        cu_seqlens_cpu,
        A_log=gate.A_log,
        dt_bias=gate.dt_bias,
        chunk_size=kwargs.get("chunk_size", 64),
        cp_context=cp_context,
        **_old_name(kwargs),
    )


def fused_recurrent_kda(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    A_log: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    scale: float | None = None,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    lower_bound: float | None = None,
    state_v_first: bool = False,
    cu_seqlens: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """KDA for decode: `archkey.fused_recurrent_kda`, where the arguments are described.

    Returns (o, final_state); initial_state is only read.
    """
    gate = _gate(use_gate_in_kernel, A_log, dt_bias, lower_bound)
    return archkey.fused_recurrent_kda(
        *_readable(q, k, v, g, beta),
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
        use_gate_in_kernel=use_gate_in_kernel,
        use_beta_sigmoid_in_kernel=use_beta_sigmoid_in_kernel,
        allow_neg_eigval=allow_neg_eigval,
        state_v_first=state_v_first,
        cu_seqlens=cu_seqlens,
        A_log=gate.A_log,
        dt_bias=gate.dt_bias,
        lower_bound=gate.lower_bound,
        **_old_name(kwargs),
    )


def fused_recurrent_kda_fwd(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    A_log: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    initial_state: torch.Tensor | None = None,
    scale: float | None = None,
    output_final_state: bool = False,
    inplace_final_state: bool = True,
    state_v_first: bool = False,
    cu_seqlens: torch.Tensor | None = None,
    ssm_state_indices: torch.Tensor | None = None,
    num_accepted_tokens: torch.Tensor | None = None,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    lower_bound: float | None = None,
    out: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """KDA over a pool of states, as vLLM calls it: `archkey.fused_recurrent_kda`.

    ssm_state_indices  `[N]`: the last state of a sequence of any length goes to its slot, where
                       fla's kernel would step on to the next sequence's; or `[N, 1 + S]`

    Returns (out, final_state), which is initial_state with inplace_final_state.
    """
    gate = _gate(use_gate_in_kernel, A_log, dt_bias, lower_bound)
    return archkey.fused_recurrent_kda(
        *_readable(q, k, v, g, beta),
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
        use_gate_in_kernel=use_gate_in_kernel,
        use_beta_sigmoid_in_kernel=use_beta_sigmoid_in_kernel,
        allow_neg_eigval=allow_neg_eigval,
        state_v_first=state_v_first,
        cu_seqlens=cu_seqlens,
        ssm_state_indices=ssm_state_indices,
        num_accepted_tokens=num_accepted_tokens,
        inplace_final_state=inplace_final_state,
        out=out,
        A_log=gate.A_log,
        dt_bias=gate.dt_bias,
        lower_bound=gate.lower_bound,
    )


def fused_kda_gate(
    g: torch.Tensor,
    A_log: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    lower_bound: float | None = None,
    output_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """The log gate of raw g: `archkey.kda_gate`."""
    g = g if g.stride(-1) == 1 else g.contiguous()
    return archkey.kda_gate(g, A_log, dt_bias, lower_bound, output_dtype)


def _readable(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens whose last dimension is strided, as out of transformers' convolution, are copied."""
    q, k, v, g, beta = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v, g, beta))
    return q, k, v, g, beta


class _Gate(NamedTuple):
    A_log: torch.Tensor | None = None
    dt_bias: torch.Tensor | None = None
    lower_bound: float | None = None


def _gate(
    in_kernel: bool,
    A_log: torch.Tensor | None,
    dt_bias: torch.Tensor | None,
    lower_bound: float | None,
) -> _Gate:
    """Parameters of a raw gate; none of a finished one."""
    return _Gate(A_log, dt_bias, lower_bound) if in_kernel else _Gate()


def _old_name(given: Mapping[str, Any]) -> dict[str, Any]:
    """The old name of state_v_first, if it was given, announced as fla does."""
    name = "transpose_state_layout"
    if name not in given:
        return {}
    text = f"`{name}` is deprecated and renamed to `state_v_first`."
    warnings.warn(text, DeprecationWarning, stacklevel=3)
    return {name: given[name]}


Functions = Mapping[str, Any]
_OWN: Functions = MappingProxyType(
    {
        "chunk_kda": chunk_kda,
        "fused_kda_gate": fused_kda_gate,
        "fused_recurrent_kda": fused_recurrent_kda,
        "fused_recurrent_kda_fwd": fused_recurrent_kda_fwd,
    }
)
_TRANSFORMERS: Functions = MappingProxyType(
    {
        "chunk_kimi_delta_attention": chunk_kda,
        "recurrent_kimi_delta_attention": fused_recurrent_kda,
    }
)
# Where functions are defined, by another name than where they are looked up.
_HOMES: Mapping[str, Functions] = MappingProxyType(
    {
        "fla.ops.kda": _OWN,
        "fla.ops.kda.fused_recurrent": _OWN,
        "fla.ops.kda.gate": _OWN,
        "transformers.models.kimi_linear.modeling_kimi_linear": _TRANSFORMERS,
        "transformers.models.glm5_next.modeling_glm5_next": _TRANSFORMERS,
    }
)

Replaced = list[tuple[dict[str, Any], str, Any]]
"""The names of a module, one of them, and what it was."""


def install() -> None:
    """From here on, in this process, whoever calls fla's KDA calls archkey's.

    That is fla's own functions, transformers' Kimi-Linear with or without fla, and every loaded
    module that imported one of them by name. Raises MissingDependency where there is neither.
    """
    _replace()


@contextmanager
def routed() -> Iterator[None]:
    """As `install`, until the end of the block; modules loaded inside keep what they looked up."""
    replaced = _replace()
    try:
        yield
    finally:
        for names, name, before in replaced:
            names[name] = before


def _replace() -> Replaced:
    """Put archkey's functions in the place of others', in every loaded module."""
    homes = {name: _imported(name) for name in _HOMES}
    others = {
        id(found): ours
        for name, home in homes.items()
        if home is not None
        for function, ours in _HOMES[name].items()
        if (found := vars(home).get(function)) is not None and found is not ours
    }
    if not any(homes.values()):
        raise MissingDependency(
            "archkey.integrations.fla: neither flash-linear-attention nor a transformers with "
            'Kimi-Linear is installed. pip install "archkey[transformers]", or call '
            "archkey.integrations.fla.chunk_kda by itself"
        )
    replaced: Replaced = []
    for module in [*sys.modules.values()]:
        if module is sys.modules[__name__]:
            continue
        names = getattr(module, "__dict__", {})
        for name, value in [*names.items()]:
            if id(value) in others:
                replaced.append((names, name, value))
                names[name] = others[id(value)]
    return replaced


def _imported(name: str) -> Any:
    """A module, or None where what it belongs to is not installed or has no such module."""
    try:
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            return None
    except ModuleNotFoundError:  # of a package above it
        return None
    return importlib.import_module(name)
