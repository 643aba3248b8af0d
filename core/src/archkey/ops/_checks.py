# SPDX-License-Identifier: Apache-2.0
"""Checks of arguments, shared by all operators. They read metadata only, so they are graph-safe.

Each names the operator, the argument, what was expected and what was found. Nothing has been
written when one of them raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from archkey.errors import ArgumentTypeError, ArgumentValueError, Unsupported

if TYPE_CHECKING:
    import torch
else:
    from archkey._torch import torch

FLOATS = ("bfloat16", "float16", "float32")
FP8 = ("float8_e4m3fn", "float8_e4m3fnuz")

_NAMES: dict[Any, str] = {}


def dtype_name(tensor: torch.Tensor) -> str:
    """torch's name of the tensor's dtype, e.g. "bfloat16"."""
    dtype = tensor.dtype
    name = _NAMES.get(dtype)
    if name is None:
        name = _NAMES[dtype] = str(dtype).removeprefix("torch.")
    return name


def shape_text(tensor: torch.Tensor) -> str:
    """`[4, 128]` - the form in which all messages print shapes."""
    return str(list(tensor.shape))


def bad_value(op: str, name: str, expected: str, found: object, hint: str = "") -> NoReturn:
    """Raise the error for a value, shape, stride or device that the contract refuses."""
    raise ArgumentValueError(_message(op, name, expected, found, hint))


def bad_type(op: str, name: str, expected: str, found: object, hint: str = "") -> NoReturn:
    """Raise the error for a dtype or Python type that the contract refuses."""
    raise ArgumentTypeError(_message(op, name, expected, found, hint))


def unsupported(op: str, name: str, expected: str, found: object, hint: str = "") -> NoReturn:
    """Raise the error for a valid request that no kernel here can serve."""
    raise Unsupported(_message(op, name, expected, found, hint))


def _message(op: str, name: str, expected: str, found: object, hint: str) -> str:
    text = f"{op}: {name} must be {expected}, found {found}"
    return f"{text}. {hint}" if hint else text


def check_tensor(op: str, name: str, value: object) -> None:
    """`value` is a tensor."""
    if not isinstance(value, torch.Tensor):
        bad_type(op, name, "a tensor", type(value).__name__)


def check_dtype(op: str, name: str, tensor: torch.Tensor, allowed: Sequence[str]) -> str:
    """The tensor's dtype is one of `allowed`; returns its name."""
    found = dtype_name(tensor)
    if found not in allowed:
        bad_type(op, name, " or ".join(allowed), found)
    return found


def check_fp8(op: str, name: str, found: str, flavour: str) -> None:
    """An FP8 dtype name is the device's flavour ("e4m3fn" or "e4m3fnuz"; "any" on the CPU)."""
    if found in FP8 and flavour != "any" and found != f"float8_{flavour}":
        hint = (
            "The same bytes mean other numbers in the other FP8 format; convert the values, "
            "do not view the bytes."
        )
        if flavour == "none":
            unsupported(op, name, "a dtype that this device has", found, hint)
        bad_type(op, name, f"float8_{flavour} on this device", found, hint)


def check_shape(op: str, name: str, tensor: torch.Tensor, shape: Sequence[int | None]) -> None:
    """The tensor has `shape`; None stands for any size."""
    found = tensor.shape
    if len(found) == len(shape) and all(
        want is None or have == want for have, want in zip(found, shape, strict=True)
    ):
        return
    expected = ", ".join("any" if want is None else str(want) for want in shape)
    bad_value(op, name, f"of shape [{expected}]", shape_text(tensor))


def check_last_contiguous(op: str, name: str, tensor: torch.Tensor) -> None:
    """The last dimension has stride 1 (an empty tensor has no strides to speak of)."""
    if tensor.stride(-1) != 1 and tensor.shape[-1] > 1 and tensor.numel() > 0:
        hint = "Other strides are free; call .contiguous() only if you cannot change the producer."
        bad_value(op, name, "contiguous in its last dimension", f"strides {tensor.stride()}", hint)


def check_apart(op: str, name: str, tensor: torch.Tensor) -> None:
    """No element of an output lies where another one does, as in an expanded tensor."""
    reach = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride < reach:
                found = f"strides {tensor.stride()} for shape {shape_text(tensor)}"
                bad_value(op, name, "free of elements that overlap", found)
            reach = stride * size


def check_same_device(op: str, first: torch.Tensor, **others: Any) -> None:
    """All `others` that are tensors lie on the device of `first`."""
    device = first.device
    for name, other in others.items():
        if isinstance(other, torch.Tensor) and other.device != device:
            bad_value(
                op, name, f"on {device} like the first argument", f"a tensor on {other.device}"
            )


def check_no_grad(op: str, *tensors: torch.Tensor | None) -> None:
    """No gradient is asked for: archkey is for inference. Call it where gradients are enabled."""
    if any(t is not None and t.requires_grad for t in tensors) and torch.is_grad_enabled():
        hint = "archkey is for inference: call it under torch.no_grad() or inference_mode()."
        bad_value(op, "the call", "free of gradients", "a tensor with requires_grad=True", hint)
