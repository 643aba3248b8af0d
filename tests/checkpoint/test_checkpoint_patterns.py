# SPDX-License-Identifier: Apache-2.0
"""Which names a pattern of each kind matches, the spellings of a name, and products of modules."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.checkpoint import _configs as c

from archkey import checkpoint
from archkey.checkpoint.patterns import Matcher, Pattern, spellings
from archkey.errors import CheckpointError

L = "model.layers"

MATCHES = [
    ("name", "lm_head", ["lm_head", "language_model.lm_head"], ["model.lm_head2", "lm_head.x"]),
    ("name", f"{L}.0.mlp", [f"{L}.0.mlp"], [f"{L}.0.mlp.gate_proj"]),
    ("glob", "mtp.*", ["mtp.fc", "mtp.layers.0.mlp.up_proj"], ["mtp", "model.mtp.fc", "xmtp.fc"]),
    ("glob", "*mlp.gate", [f"{L}.3.mlp.gate"], [f"{L}.3.mlp.gate_proj", f"{L}.3.mlp.gate.x"]),
    ("glob", f"{L}.?.mlp.*", [f"{L}.3.mlp.up_proj"], [f"{L}.13.mlp.up_proj"]),
    ("glob", f"{L}.*.self_attn*", [f"{L}.3.self_attn.q_proj", f"{L}.3.self_attn"], [f"{L}.3.mlp"]),
    ("glob", "*LM_HEAD", [], ["lm_head"]),
    ("regex", r"re:.*\.mlp\.gate$", [f"{L}.3.mlp.gate"], [f"{L}.3.mlp.gate_proj"]),
    # From the start, and not to the end: layer 611 would be taken, too.
    ("regex", "re:model.layers.61.*", [f"{L}.61.mlp.up_proj", f"{L}.611.x"], [f"{L}.6.x"]),
    ("regex", "re:lm_head", ["lm_head"], ["x.lm_head"]),
    ("subtree", "lm_head", ["lm_head", "x.lm_head", "lm_head.proj"], ["xlm_head", "lm_head2"]),
    # sglang#23467: a substring took gate for a part of gate_up_proj.
    ("subtree", "mlp.gate", [f"{L}.3.mlp.gate"], [f"{L}.3.mlp.gate_up_proj", f"{L}.3.mlp"]),
    ("subtree", f"{L}.0.mlp", [f"{L}.0.mlp.up_proj"], [f"{L}.10.mlp.up_proj"]),
    ("subtree", f"{L}.*.self_attn", [f"{L}.9.self_attn.q_proj"], [f"{L}.9.0.self_attn.q_proj"]),
]


@pytest.mark.parametrize(("kind", "text", "yes", "no"), MATCHES)
def test_kinds(kind: str, text: str, yes: list[str], no: list[str]) -> None:
    matcher = Matcher([Pattern(kind, text)])
    assert [name for name in yes if matcher.find(name) is None] == []
    assert [name for name in no if matcher.find(name) is not None] == []


def test_the_first_of_several_patterns_decides() -> None:
    patterns = [Pattern("glob", "*q_proj"), Pattern("regex", "re:.*"), Pattern("glob", "mtp.fc")]
    matcher = Matcher(patterns)
    assert matcher.find("mtp.q_proj") == patterns[0]
    assert matcher.find("mtp.fc") == patterns[1]
    assert set(matcher.find_all("mtp.fc")) == {patterns[1], patterns[2]}


LAYER = "layers.3.self_attn.q_proj"


@pytest.mark.parametrize("written", ["model.", "model.language_model.", "language_model.model."])
@pytest.mark.parametrize("stored", ["model.", "model.language_model.", "language_model.model."])
def test_prefixes_of_one_text_model_are_one(written: str, stored: str) -> None:
    for description in (c.quark(written + LAYER), c.modelopt("NVFP4", written + LAYER)):
        found = checkpoint.read({"quantization_config": description})
        assert not found.scheme(stored + LAYER).quantized
        assert found.scheme(stored + LAYER.replace("q_proj", "o_proj")).quantized


def test_a_vision_tower_and_mtp_have_one_spelling() -> None:
    for name in (
        "model.visual.blocks.0.attn.qkv",
        "mtp.layers.0.mlp.up_proj",
        "mtp.fc",
        "visual.x",
    ):
        assert spellings(name) == (name,)
    assert spellings("model.layers.0.x")[0] == "model.layers.0.x"
    assert len(set(spellings("model.layers.0.x"))) == 3


# ---- products of modules

ATTENTION = "model.layers.0.self_attn"
SHARDS = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "fused_qkv_a_proj_with_mqa": ("q_a_proj", "kv_a_proj_with_mqa"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "in_proj_qkvz": ("in_proj_qkv", "in_proj_z"),
    "in_proj_ba": ("in_proj_b", "in_proj_a"),
}


@pytest.mark.parametrize("fused", SHARDS)
def test_a_product_is_what_its_modules_are(fused: str) -> None:
    names = [f"{ATTENTION}.{shard}" for shard in SHARDS[fused]]
    all_of_them = checkpoint.read({"quantization_config": c.quark(*names)})
    assert not all_of_them.scheme(f"{ATTENTION}.{fused}").quantized
    assert [s.name for s in all_of_them.resolve(f"{ATTENTION}.{fused}").shards] == names
    none_of_them = checkpoint.read({"quantization_config": c.quark("lm_head")})
    assert none_of_them.scheme(f"{ATTENTION}.{fused}").weight == "mxfp4"
    for i in range(1, len(names)):
        some = checkpoint.read({"quantization_config": c.quark(*names[:i])})
        with pytest.raises(CheckpointError) as error:
            some.scheme(f"{ATTENTION}.{fused}")
        for name in names:
            assert f"  {name}: " in str(error.value)
        assert f"not quantised (excluded by {names[0]!r})" in str(error.value)
        assert "mxfp4, e8m0 scale per group of 32 (no pattern" in str(error.value)
        assert "separate modules" in str(error.value)


def test_a_product_of_different_schemes_is_refused() -> None:
    tensor = c.specs(c.fp8("per_tensor"), c.fp8("per_tensor"))
    found = checkpoint.read(
        {"quantization_config": c.quark(layer_quant_config={"*up_proj": tensor})}
    )
    with pytest.raises(CheckpointError, match=r"fp8, scale per tensor \(set by '\*up_proj'\)"):
        found.scheme("model.layers.0.mlp.gate_up_proj")


def test_a_fused_name_that_stands_in_the_files_is_matched_itself() -> None:
    """Qwen3-Next stores in_proj_qkvz; compressed-tensors may ignore a product by its name."""
    name = "model.layers.0.linear_attn.in_proj_qkvz"
    for description in (
        c.quark("*in_proj_qkvz"),
        c.compressed(c.args(8, "channel"), None, name),
        c.modelopt("FP8", "linear_attn.in_proj_qkvz"),
    ):
        found = checkpoint.read({"quantization_config": description})
        assert not found.scheme(name).quantized
        assert found.scheme("model.layers.0.linear_attn.in_proj_ba").quantized


# ---- an excluded module is never packed

PARTS = st.sampled_from(
    [
        *(
            "model",
            "language_model",
            "layers",
            "mtp",
            "0",
            "1",
            "61",
            "mlp",
            "experts",
            "self_attn",
        ),
        *("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj", "gate", "lm_head"),
        *("qkv_proj", "gate_up_proj", "in_proj_qkvz", "in_proj_z", "fc"),
    ]
)
NAMES = st.lists(PARTS, min_size=1, max_size=6).map(".".join)
WILD = st.lists(PARTS | st.just("*"), min_size=1, max_size=4).map(".".join)
GLOBS = WILD | WILD.map("*{}".format) | WILD.map("{}*".format)
REGEXES = WILD.map(lambda text: "re:" + text.replace("*", ".*"))
PACKED = {"uint8"}


@settings(max_examples=300, deadline=None)
@given(name=NAMES, exclude=st.lists(NAMES | GLOBS | REGEXES, max_size=5), producer=st.booleans())
def test_what_a_pattern_excludes_is_never_packed(
    name: str, exclude: list[str], producer: bool
) -> None:
    if producer:
        description = c.quark(*exclude, layer_quant_config={"*_proj": c.MXFP4})
    else:
        description = c.compressed(
            c.args(4, "group", group_size=32), None, *exclude, format="mxfp4-pack-quantized"
        )
    found = checkpoint.read({"quantization_config": description})
    excluded = Matcher(found.exclude).find(name) is not None
    try:
        entry = checkpoint.plan(found, [checkpoint.Layer(name, (64,), 64)])[name]
    except CheckpointError as error:
        assert "different schemes" in str(error)
        return
    packed = {tensor.dtype for tensor in entry.tensors} & PACKED
    assert not (excluded and packed)
    if not excluded and entry.resolution.rule != "never" and not entry.resolution.shards:
        assert packed, "and what nothing excludes is"
