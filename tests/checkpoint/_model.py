# SPDX-License-Identifier: Apache-2.0
"""A small Qwen3.5 in files, as AMD Quark exports it: MXFP4, and its MTP module in bfloat16.

The files are written from rules of this module alone, not from a plan: which modules are packed is
said by `is_packed`, and the tests hold the plan against it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tests.checkpoint import _configs as c

from archkey.formats import dequantize_mxfp4, quantize_mxfp4

TEXT = c.QWEN3_5_SMALL["text_config"]
HIDDEN, HEADS, KV, WIDTH, EXPERTS = 128, 4, 2, 32, 4
INTER, SHARED, VOCAB = 64, 96, 256

EXCLUDE = (
    "lm_head",
    "mtp.*",
    r"re:.*\.linear_attn\.in_proj_[ab]$",
    "*.mlp.shared_expert_gate",
    *(f"model.language_model.layers.{i}.mlp.gate" for i in range(4)),
)
CONFIG = c.with_quantization(c.QWEN3_5_SMALL, c.quark(*EXCLUDE))

ATTENTION = {
    "self_attn.q_proj": (2 * HEADS * WIDTH, HIDDEN),
    "self_attn.k_proj": (KV * WIDTH, HIDDEN),
    "self_attn.v_proj": (KV * WIDTH, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HEADS * WIDTH),
}
LINEAR = {
    "linear_attn.in_proj_qkv": (256, HIDDEN),
    "linear_attn.in_proj_z": (128, HIDDEN),
    "linear_attn.in_proj_b": (4, HIDDEN),
    "linear_attn.in_proj_a": (4, HIDDEN),
    "linear_attn.out_proj": (HIDDEN, 128),
}


def _mlp(name: str, inter: int) -> dict[str, tuple[int, int]]:
    return {
        f"{name}.gate_proj": (inter, HIDDEN),
        f"{name}.up_proj": (inter, HIDDEN),
        f"{name}.down_proj": (HIDDEN, inter),
    }


MOE: dict[str, tuple[int, int]] = {
    "mlp.gate": (EXPERTS, HIDDEN),
    **{k: v for e in range(EXPERTS) for k, v in _mlp(f"mlp.experts.{e}", INTER).items()},
    **_mlp("mlp.shared_expert", SHARED),
    "mlp.shared_expert_gate": (1, HIDDEN),
}


def modules() -> dict[str, tuple[int, int]]:
    """All linear modules of the small model with their shapes."""
    listed: dict[str, tuple[int, int]] = {}
    for i in range(4):
        mixer = ATTENTION if i == 3 else LINEAR
        prefix = f"model.language_model.layers.{i}"
        listed |= {f"{prefix}.{name}": shape for name, shape in {**mixer, **MOE}.items()}
    listed |= {f"mtp.layers.0.{name}": shape for name, shape in {**ATTENTION, **MOE}.items()}
    return listed | {"mtp.fc": (HIDDEN, 2 * HIDDEN), "lm_head": (VOCAB, HIDDEN)}


def is_packed(name: str) -> bool:
    """Whether the exporter packs module `name`."""
    plain = ("in_proj_a", "in_proj_b", "mlp.gate", "shared_expert_gate", "lm_head")
    return not (name.startswith("mtp.") or name.endswith(plain))


def write(
    folder: Path, config: dict[str, Any] = CONFIG, packed: Callable[[str], bool] = is_packed
) -> dict[str, torch.Tensor]:
    """Two files with index and config.json; returns the float64 weight of each module."""
    torch.manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}
    exact: dict[str, torch.Tensor] = {}
    for name, (rows, columns) in modules().items():
        weight = (torch.randn(rows, columns) * columns**-0.5).to(torch.bfloat16)
        if packed(name):
            codes, scale = quantize_mxfp4(weight.float(), "even")
            tensors |= {f"{name}.weight": codes, f"{name}.weight_scale": scale}
            exact[name] = dequantize_mxfp4(codes, scale).double()
        else:
            tensors[f"{name}.weight"] = weight
            exact[name] = weight.double()
    # What stands in such files, too, and is no linear module.
    tensors["model.language_model.embed_tokens.weight"] = torch.randn(VOCAB, HIDDEN).bfloat16()
    tensors["model.language_model.layers.0.linear_attn.conv1d.weight"] = torch.ones(256, 1, 4)
    tensors["mtp.norm.weight"] = torch.ones(HIDDEN)
    save(folder, tensors, config)
    return exact


def save(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    """`tensors` in two files with their index, and config.json."""
    folder.mkdir(exist_ok=True)
    names = sorted(tensors)
    halves = (names[: len(names) // 2], names[len(names) // 2 :])
    weight_map = {}
    for number, half in enumerate(halves, 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name].contiguous() for name in half}, folder / file)
        weight_map |= dict.fromkeys(half, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))


Linear = Callable[[str, torch.Tensor], torch.Tensor]


def forward(x: torch.Tensor, embedded: torch.Tensor, linear: Linear) -> tuple[torch.Tensor, ...]:
    """Logits of the decoder and of MTP: every linear module, the mixing between them plain.

    linear  (name of a module or product, its input) -> its output
    """
    for i in range(4):
        x = _block(x, f"model.language_model.layers.{i}", linear, full=i == 3)
    logits = linear("lm_head", _norm(x))
    hidden = linear("mtp.fc", torch.cat((_norm(embedded), _norm(x)), dim=-1))
    return logits, linear("lm_head", _norm(_block(hidden, "mtp.layers.0", linear, full=True)))


def _norm(x: torch.Tensor) -> torch.Tensor:
    return x * x.square().mean(dim=-1, keepdim=True).add(1e-6).rsqrt()


def _block(x: torch.Tensor, name: str, linear: Linear, *, full: bool) -> torch.Tensor:
    normed = _norm(x)
    x = x + (_attention if full else _gated)(normed, name, linear)
    return x + _experts(_norm(x), f"{name}.mlp", linear)


def _attention(x: torch.Tensor, name: str, linear: Linear) -> torch.Tensor:
    sizes = (2 * HEADS * WIDTH, KV * WIDTH, KV * WIDTH)
    query, key, value = linear(f"{name}.self_attn.qkv_proj", x).split(sizes, dim=-1)
    query, gate = query.unflatten(-1, (HEADS, 2 * WIDTH)).chunk(2, dim=-1)
    key, value = (t.unflatten(-1, (KV, WIDTH)).repeat_interleave(2, dim=1) for t in (key, value))
    scores = torch.einsum("thd,shd->hts", query, key) * WIDTH**-0.5
    mixed = torch.einsum("hts,shd->thd", scores.softmax(dim=-1), value)
    return linear(f"{name}.self_attn.o_proj", (mixed * gate.sigmoid()).flatten(1))


def _gated(x: torch.Tensor, name: str, linear: Linear) -> torch.Tensor:
    """The projections of a linear attention, whose state is a mean over tokens here."""
    mixed, z = linear(f"{name}.linear_attn.in_proj_qkvz", x).split((256, 128), dim=-1)
    query, key, value = mixed.split((64, 64, 128), dim=-1)
    beta, decay = linear(f"{name}.linear_attn.in_proj_ba", x).sigmoid().chunk(2, dim=-1)
    value = (value.unflatten(-1, (4, 32)) * (beta * decay).unsqueeze(-1)).flatten(1)
    similar = (query * key).sum(dim=-1, keepdim=True).tanh()
    return linear(f"{name}.linear_attn.out_proj", value * similar * F.silu(z))


def _experts(x: torch.Tensor, name: str, linear: Linear) -> torch.Tensor:
    """All experts, weighted: a router that picks would make the comparison jump."""
    weights = linear(f"{name}.gate", x).softmax(dim=-1)
    total = linear(f"{name}.shared_expert_gate", x).sigmoid() * _swiglu(
        x, f"{name}.shared_expert", linear
    )
    for e in range(EXPERTS):
        total = total + weights[:, e : e + 1] * _swiglu(x, f"{name}.experts.{e}", linear)
    return total


def _swiglu(x: torch.Tensor, name: str, linear: Linear) -> torch.Tensor:
    gate, up = linear(f"{name}.gate_up_proj", x).chunk(2, dim=-1)
    return linear(f"{name}.down_proj", F.silu(gate) * up)
