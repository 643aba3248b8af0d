# SPDX-License-Identifier: Apache-2.0
"""The linear modules of a model, by name and shape, from its config.json alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archkey.checkpoint.models import MODELS, SIZES, WRAPPERS, Model, Row, Wrapper
from archkey.checkpoint.reading import config_of, text_config
from archkey.errors import CheckpointError, nearest

__all__ = ["CUTS", "Layer", "layers"]

CUTS = ("column", "row", "replicated")
"""How tensor-parallel ranks share a weight `[N, K]`: N cut, K cut, or each has all of it."""


@dataclass(frozen=True)
class Layer:
    """A linear module as the files name it: `y [M, N] = x [M, K] @ weight.T`."""

    name: str
    parts: tuple[int, ...]
    """Rows of its weight, which sum up to N: parts that ranks cut each by itself."""
    columns: int
    """K."""
    cut: str = "replicated"
    """One of CUTS."""
    heads: int = 0
    """The rows are so many heads, which no rank gets a part of; 0 if they are not."""
    shared_heads: bool = False
    """Where ranks outnumber the heads, several ranks hold the same one."""
    stack: int = 0
    """Experts that lie in the same tensors, `[stack, ...]`; 0 for a weight by itself."""
    mtp: bool = False
    """Part of multi-token prediction, which files may leave out."""

    @property
    def rows(self) -> int:
        """N."""
        return sum(self.parts)


def layers(config: Mapping[str, Any] | str | Path) -> tuple[Layer, ...]:
    """All linear modules of the decoder, its MTP module and its head, in the order of the model.

    config  as for `archkey.checkpoint.read`

    CheckpointError for a model type that is not in `MODELS`, and for a field that is missing.
    """
    whole = config_of(config)
    text = text_config(whole)
    written = str(whole.get("model_type"))
    wrapper = WRAPPERS.get(written)
    if wrapper is None or text is whole:
        kind = wrapper.text if wrapper else written
        wrapper = Wrapper(kind, "model.")
    if wrapper.text not in MODELS:
        known = [*MODELS, *WRAPPERS]
        raise CheckpointError(
            f"model_type: found {written!r}; {nearest(written, known)}. Known: {', '.join(known)}. "
            "For others give the layers yourself, or read them from the files' headers "
            "(`layers_of(from_safetensors(folder))`, `archkey quant explain --weights`)."
        )
    try:
        return tuple(_all(MODELS[wrapper.text], wrapper, text, whole))
    except KeyError as error:
        raise CheckpointError(
            f"config.json lacks {error.args[0]!r}, which the layers of {written} need"
        ) from None


def _all(
    model: Model, wrapper: Wrapper, text: Mapping[str, Any], whole: Mapping[str, Any]
) -> Iterator[Layer]:
    count = int(text["num_hidden_layers"])
    for i in range(count):
        yield from _decoder(model, text, f"{wrapper.prefix}layers.{i}.", i, _mixer(model, text, i))
    yield from _mtp(model, wrapper, text, count)
    if not (text.get("tie_word_embeddings") or whole.get("tie_word_embeddings")):
        yield _layer(Row(wrapper.head, ("vocab",), "hidden"), text, "")


def _mtp(model: Model, wrapper: Wrapper, text: Mapping[str, Any], count: int) -> Iterator[Layer]:
    """The layers of multi-token prediction: a decoder layer of full attention each."""
    field, otherwise = model.mtp_field
    number = text.get(field, otherwise) if model.mtp else 0
    rows = model.mixers.get("full_attention") or model.mixers.get("", ())
    if number and model.mtp == "mtp.":
        yield from (_layer(row, text, "mtp.", mtp=True) for row in model.mtp_extra)
    for j in range(number or 0):
        if model.mtp == "mtp.":
            # The layer is a sparse one where the model has any, whatever its number.
            yield from _decoder(model, text, f"mtp.layers.{j}.", None, rows, mtp=True)
        else:
            prefix = f"{wrapper.prefix}layers.{count + j}."
            yield from (_layer(row, text, prefix, mtp=True) for row in model.mtp_extra)
            yield from _decoder(model, text, prefix, None, rows, mtp=True)


def _mixer(model: Model, text: Mapping[str, Any], i: int) -> tuple[Row, ...]:
    """The rows of layer i's attention, of whichever kind."""
    if "" in model.mixers:
        return model.mixers[""]
    types = text.get("layer_types")
    if types is None:  # transformers' own default
        full = (i + 1) % int(text.get("full_attention_interval") or 4) == 0
        kind = "full_attention" if full else "linear_attention"
    else:
        kind = str(types[i]) if i < len(types) else "nothing"
    if kind not in model.mixers:
        raise CheckpointError(
            f"config.json: layer_types[{i}]: found {kind!r}; expected {' or '.join(model.mixers)}"
        )
    return model.mixers[kind]


def _is_sparse(model: Model, text: Mapping[str, Any], i: int | None) -> bool:
    """Whether layer i has experts; None is a layer of MTP, which has them if the model does.

    Qwen: `decoder_sparse_step` and `mlp_only_layers`. DeepSeek: `first_k_dense_replace` and
    `moe_layer_freq`.
    """
    if not model.sparse or not SIZES["experts"](text):
        return False
    if i is None:
        return True
    every = int(text.get("decoder_sparse_step") or 1)
    frequency = int(text.get("moe_layer_freq") or 1)
    return (
        i >= int(text.get("first_k_dense_replace") or 0)
        and i % frequency == 0
        and (i + 1) % every == 0
        and i not in (text.get("mlp_only_layers") or ())
    )


def _decoder(
    model: Model,
    text: Mapping[str, Any],
    prefix: str,
    i: int | None,
    mixer: tuple[Row, ...],
    *,
    mtp: bool = False,
) -> Iterator[Layer]:
    """The modules of one decoder layer; those of experts one by one."""
    yield from (_layer(row, text, prefix, mtp=mtp) for row in mixer)
    sparse = _is_sparse(model, text, i)
    experts = SIZES["experts"](text)
    for row in model.sparse if sparse else model.dense:
        if model.stacked and ".experts." in row.name:
            yield _layer(row, text, prefix, mtp=mtp, stack=experts)
            continue
        layer = _layer(row, text, prefix, mtp=mtp)
        if "{}" not in row.name:
            yield layer
            continue
        for e in range(experts):
            name = layer.name.replace("{}", str(e))
            yield Layer(name, layer.parts, layer.columns, layer.cut, mtp=mtp)


def _layer(
    row: Row, text: Mapping[str, Any], prefix: str, *, mtp: bool = False, stack: int = 0
) -> Layer:
    return Layer(
        prefix + row.name,
        tuple(int(SIZES[size](text)) for size in row.rows),
        int(SIZES[row.columns](text)),
        row.cut,
        SIZES[row.heads](text) if row.heads else 0,
        row.heads == "kv_heads",
        stack,
        mtp,
    )
