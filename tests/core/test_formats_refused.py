# SPDX-License-Identifier: Apache-2.0
"""What the formats refuse: each function names its argument, what it wants and what it found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from archkey import formats
from archkey.errors import ArgumentTypeError, ArgumentValueError
from archkey.formats import sparse_kv

TYPE, VALUE = ArgumentTypeError, ArgumentValueError
X = torch.zeros(2, 64)
U8 = torch.zeros(2, 32, dtype=torch.uint8)
FN, FNUZ = X.to(torch.float8_e4m3fn), X.to(torch.float8_e4m3fnuz)
ONE = torch.ones(1)
NUMBERS = "bfloat16 or float16 or float32 or float64"
V32, MODEL1 = sparse_kv.packed("fp8_v32"), sparse_kv.packed("fp8_model1")
CACHE = sparse_kv.empty_cache(V32, 1, 4)
SLOTS = torch.arange(2)
NOPE, ROPE = torch.ones(2, 512), torch.ones(2, 64)


def _store(**change: Any) -> Callable[[], Any]:
    call = {"cache": CACHE, "slots": SLOTS, "k_nope": NOPE, "k_rope": ROPE, "layout": V32}
    return lambda: sparse_kv.store(**(call | {"scale_mode": "fp32"} | change))


def _load(**change: Any) -> Callable[[], Any]:
    call = {"cache": CACHE, "slots": SLOTS, "layout": V32, "dtype": torch.float32}
    return lambda: sparse_kv.load(**(call | change))


F = formats
REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "fp8_max": (lambda: F.fp8_max("float8_e8m0fnu"), TYPE, "dtype must be one of float8_e4m3fn, "),
    "encode dtype": (lambda: F.encode_fp8(X, "int8"), TYPE, "dtype must be one of.* found int8"),
    "encode list": (lambda: F.encode_fp8([1.0], "float8_e5m2"), TYPE, "values must be a tensor"),
    "encode ints": (
        lambda: F.encode_fp8(U8, "float8_e5m2"),
        TYPE,
        f"values must be {NUMBERS}, found uint8",
    ),
    "decode bytes": (lambda: F.decode_fp8(U8), TYPE, "codes must be float8_e4m3fn or .*uint8"),
    "amax ints": (lambda: F.fp8_scale(U8, "float8_e5m2"), TYPE, "amax must be bfloat16"),
    "rounding": (
        lambda: F.fp8_scale(ONE, "float8_e4m3fn", "ue8m0"),
        VALUE,
        "rounding must be one of .*'pow2'.*, found 'ue8m0'",
    ),
    "group": (
        lambda: F.quantize_fp8(X, "float8_e4m3fn", 48),
        VALUE,
        "group_size must be a divisor of 64, found 48",
    ),
    "group 0": (lambda: F.quantize_fp8(X, "float8_e4m3fn", 0), VALUE, "found 0"),
    "no columns": (lambda: F.quantize_fp8(X[:, :0], "float8_e4m3fn"), VALUE, "a divisor of 0"),
    "scalar": (
        lambda: F.quantize_fp8(ONE[0], "float8_e4m3fn"),
        VALUE,
        r"values must be of shape \[..., N\], found \[\]",
    ),
    "fp8 scale dtype": (lambda: F.dequantize_fp8(FN, U8), TYPE, "scale must be .* found uint8"),
    "fp8 scale float": (lambda: F.dequantize_fp8(FN, 0.5), TYPE, "scale must be a tensor"),
    "fp8 scale rows": (
        lambda: F.dequantize_fp8(FN, torch.ones(3, 2)),
        VALUE,
        r"scale must be of one element, or of shape \[2, 'G'\] with G dividing 64, found \[3, 2\]",
    ),
    "fp8 scale columns": (lambda: F.dequantize_fp8(FN, torch.ones(2, 3)), VALUE, r"found \[2, 3\]"),
    "to fnuz": (
        lambda: F.normalize_e4m3fn_to_e4m3fnuz(FNUZ, ONE),
        TYPE,
        "codes must be float8_e4m3fn, found float8_e4m3fnuz",
    ),
    "to fnuz scale": (
        lambda: F.normalize_e4m3fn_to_e4m3fnuz(FN, ONE.half()),
        TYPE,
        "scale must be float32",
    ),
    "to fn": (lambda: F.normalize_e4m3fnuz_to_e4m3fn(FN, ONE), TYPE, "float8_e4m3fnuz, found"),
    "to fn scale": (lambda: F.normalize_e4m3fnuz_to_e4m3fn(FNUZ, U8), TYPE, "scale must be"),
    "e2m1 ints": (lambda: F.encode_e2m1(U8), TYPE, f"values must be {NUMBERS}, found uint8"),
    "e2m1 codes": (lambda: F.decode_e2m1(X), TYPE, "codes must be uint8, found float32"),
    "pack dtype": (lambda: F.pack_e2m1(X), TYPE, "codes must be uint8"),
    "pack odd": (lambda: F.pack_e2m1(U8[:, :7]), VALUE, "codes .* multiple of 2 columns, found 7"),
    "unpack dtype": (lambda: F.unpack_e2m1(X), TYPE, "packed must be uint8 or float4_e2m1fn_x2"),
    "e8m0 dtype": (lambda: F.decode_e8m0(X), TYPE, "scale must be uint8 or float8_e8m0fnu"),
    "e8m0 of ints": (lambda: F.encode_e8m0(U8), TYPE, "values must be bfloat16"),
    "e8m0 amax": (lambda: F.e8m0_scale(U8, "even"), TYPE, "amax must be bfloat16"),
    "mode": (
        lambda: F.e8m0_scale(ONE, "nearest"),
        VALUE,
        "scale_mode must be one of floor, even, rceil, ceil, found 'nearest'",
    ),
    "element": (
        lambda: F.e8m0_scale(ONE, "even", "float8_e4m3fnuz"),
        TYPE,
        "element must be one of float4_e2m1fn, .* found 'float8_e4m3fnuz'",
    ),
    "mxfp4 ints": (lambda: F.quantize_mxfp4(U8, "even"), TYPE, "values must be"),
    "mxfp4 odd": (
        lambda: F.quantize_mxfp4(X[:, :33], "even"),
        VALUE,
        "values must be of a multiple of 2 columns, found 33",
    ),
    "mxfp4 mode": (lambda: F.quantize_mxfp4(X, "up"), VALUE, "scale_mode must be one of"),
    "mxfp4 scale dtype": (lambda: F.dequantize_mxfp4(U8, X), TYPE, "scale must be uint8 or"),
    "mxfp4 scale shape": (
        lambda: F.dequantize_mxfp4(U8, U8),
        VALUE,
        r"scale must be of shape \[2, 2\], found \[2, 32\]",
    ),
    "mxfp8 element": (
        lambda: F.quantize_mxfp8(X, "even", "float8_e5m2fnuz"),
        TYPE,
        "element must be float8_e4m3fn or float8_e5m2, found 'float8_e5m2fnuz'",
    ),
    "mxfp8 ints": (lambda: F.quantize_mxfp8(U8, "even"), TYPE, "values must be"),
    "mxfp8 mode": (lambda: F.quantize_mxfp8(X, "pow2"), VALUE, "found 'pow2'"),
    "mxfp8 codes": (lambda: F.dequantize_mxfp8(FNUZ, U8), TYPE, "codes must be float8_e4m3fn or"),
    "mxfp8 scale": (lambda: F.dequantize_mxfp8(FN, U8), VALUE, r"scale must be of shape \[2, 2\]"),
    "nvfp4 ints": (lambda: F.quantize_nvfp4(U8, ONE), TYPE, "values must be"),
    "nvfp4 width": (lambda: F.quantize_nvfp4(X[:, :40], ONE), VALUE, "multiple of 16 .* found 40"),
    "nvfp4 scale float": (lambda: F.quantize_nvfp4(X, 1.0), TYPE, "global_scale must be a tensor"),
    "nvfp4 scale half": (lambda: F.quantize_nvfp4(X, ONE.half()), TYPE, "must be float32"),
    "nvfp4 scale size": (lambda: F.quantize_nvfp4(X, X), VALUE, r"of one element, found \[2, 64\]"),
    "nvfp4 block scale": (lambda: F.dequantize_nvfp4(U8, U8, ONE), TYPE, "scale must be float8_e4"),
    "nvfp4 blocks": (lambda: F.dequantize_nvfp4(U8, FN, ONE), VALUE, r"of shape \[2, 4\]"),
    "nvfp4 back": (lambda: F.dequantize_nvfp4(U8, FN[:, :4], X), VALUE, "global_scale .*one elem"),
    "shuffle dtype": (lambda: F.shuffle_gfx950(X), TYPE, "scale must be of one byte each"),
    "shuffle dims": (lambda: F.shuffle_gfx950(U8[0]), VALUE, "scale must be of two dimensions"),
    "unshuffle": (
        lambda: F.unshuffle_gfx950(U8, 2, 32),
        VALUE,
        r"shuffled must be of shape \[256, 32\], found \[2, 32\]. It holds 2 x 32 scales in whole",
    ),
    "swizzle dtype": (lambda: F.swizzle_128x4(X), TYPE, "scale must be of one byte each"),
    "swizzle dims": (lambda: F.swizzle_128x4(U8[None]), VALUE, "scale must be of two dimensions"),
    "unswizzle": (
        lambda: F.unswizzle_128x4(U8, 2, 32),
        VALUE,
        r"swizzled must be of shape \[128, 32\], found \[2, 32\]",
    ),
    "cache dtype": (_store(cache=CACHE.float()), TYPE, "cache must be uint8, found float32"),
    "cache row": (_store(layout=MODEL1), VALUE, r"cache must be of shape \[any, any, 584\]"),
    "slots dtype": (_store(slots=SLOTS.int()), TYPE, "slots must be int64, found int32"),
    "nope width": (_store(k_nope=ROPE), VALUE, r"k_nope must be of shape \[2, 512\], found"),
    "nope dtype": (_store(k_nope=NOPE.int()), TYPE, "k_nope must be bfloat16"),
    "rope width": (_store(k_rope=NOPE), VALUE, r"k_rope must be of shape \[2, 64\], found"),
    "no rope": (_store(k_rope=None), VALUE, "k_rope must be given with fp8_v32, found None"),
    "rope": (
        _store(
            layout=sparse_kv.packed("fp8_v32_nope"),
            cache=sparse_kv.empty_cache(sparse_kv.packed("fp8_v32_nope"), 1, 4),
        ),
        VALUE,
        "k_rope must be None with fp8_v32_nope, found Tensor",
    ),
    "exponent byte": (
        _store(layout=MODEL1, cache=sparse_kv.empty_cache(MODEL1, 1, 4), k_nope=NOPE[:, :448]),
        VALUE,
        "scale_mode must be 'pow2' for fp8_model1, found 'fp32'. An exponent byte",
    ),
    "kv mode": (_store(scale_mode="even"), VALUE, "rounding must be one of"),
    "load cache": (_load(cache=CACHE[..., :8]), VALUE, r"cache must be of shape \[any, any, 656\]"),
    "load slots": (_load(slots=[0]), TYPE, "slots must be a tensor, found list"),
}


@pytest.mark.parametrize(("call", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=r"^\w+: .*" + message):
        call()
    assert not CACHE.any(), "nothing is written"


def test_every_public_function_is_refused_something() -> None:
    """A new function is not forgotten here."""
    mentioned = {name for call, *_ in REFUSED.values() for name in call.__code__.co_names}
    functions = {name for name in formats.__all__ if callable(getattr(formats, name))}
    assert functions - mentioned == set()
