# SPDX-License-Identifier: Apache-2.0
"""Quantised checkpoints: what a config.json means for each module, and what to allocate for it.

    found = archkey.checkpoint.read("Qwen3.5-397B-A17B-MXFP4")     a Quantization
    found.scheme("mtp.fc")                                        not quantised: "mtp.*" is excluded
    plan = archkey.checkpoint.plan("Qwen3.5-397B-A17B-MXFP4", tp=8)
    plan["model.language_model.layers.3.self_attn.o_proj"].tensors
    archkey.checkpoint.check(plan, archkey.checkpoint.from_safetensors(folder)).require()

Reading, resolving and planning are metadata: no torch, no GPU, no weights. Producers write the
same things in their own words; their rules are in one module each, with sources, and end in one
normal form. An engine that allocates by the plan has no rule of its own that could go wrong alone,
as when an excluded MTP module got the shapes of packed weights (sglang#23113, sglang#23146).

    reading   config.json -> Quantization, by a table of producers: quark, compressed_tensors,
              modelopt, listed ("fp8", "mxfp4"); fields, patterns, scheme, quantization beside them
    planning  models and layer (names and shapes), storage (tensors), cut (ranks), planning
    files     files (headers), checking
    people    names; targets: support
"""

from __future__ import annotations

from archkey.checkpoint.checking import Disagreement, Report, check
from archkey.checkpoint.files import Header, from_safetensors, layers_of
from archkey.checkpoint.layer import Layer, layers
from archkey.checkpoint.names import collapse
from archkey.checkpoint.patterns import Pattern, spellings
from archkey.checkpoint.planning import Entry, Fusion, Plan, plan
from archkey.checkpoint.quantization import FUSED, Quantization, Resolution
from archkey.checkpoint.reading import PRODUCERS, read
from archkey.checkpoint.scheme import UNQUANTIZED, Activation, Scheme
from archkey.checkpoint.storage import LAYOUTS, Tensor
from archkey.checkpoint.support import Verdict, decide

__all__ = [
    "FUSED",
    "LAYOUTS",
    "PRODUCERS",
    "UNQUANTIZED",
    "Activation",
    "Disagreement",
    "Entry",
    "Fusion",
    "Header",
    "Layer",
    "Pattern",
    "Plan",
    "Quantization",
    "Report",
    "Resolution",
    "Scheme",
    "Tensor",
    "Verdict",
    "check",
    "collapse",
    "decide",
    "from_safetensors",
    "layers",
    "layers_of",
    "plan",
    "read",
    "spellings",
]
