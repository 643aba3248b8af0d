# SPDX-License-Identifier: Apache-2.0
"""What each producer's description is in normal form, and what is refused by name."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from tests.checkpoint import _configs as c

from archkey import checkpoint
from archkey.errors import CheckpointError

LAYER = "model.layers.0.mlp.down_proj"


def read(description: dict[str, Any], **more: Any) -> checkpoint.Quantization:
    return checkpoint.read({"quantization_config": description, **more})


TOKEN = c.args(8, "token", dynamic=True)
MX4, MX8 = ({"group_size": 32, "dynamic": d} for d in (False, True))
NV, NV_LOCAL = ({"group_size": 16, "dynamic": d} for d in (False, "local"))
BLOCK = {"block_structure": [128, 128]}
NVFP4_QUARK = [
    {"dtype": "fp4", "qscheme": "per_group", "group_size": 16, "is_dynamic": False},
    c.fp8("per_tensor"),
]

# (description, scheme in words, activation in words, layout)
FORMS = {
    "quark mxfp4": (
        c.quark(),
        "mxfp4, e8m0 scale per group of 32",
        "mxfp4 dynamic per 32 columns, even",
        "mxfp4",
    ),
    "quark mxfp4 weights alone": (
        c.quark(default=c.specs(c.mx(dynamic=False))),
        "mxfp4, e8m0 scale per group of 32",
        "not quantised",
        "mxfp4",
    ),
    "quark mxfp4 with fp8 activations": (
        c.quark(default=c.specs(c.mx(dynamic=False), c.fp8("per_tensor"))),
        "mxfp4, e8m0 scale per group of 32",
        "fp8 static per tensor",
        "mxfp4",
    ),
    "quark fp8 per tensor": (
        c.quark(default=c.specs(c.fp8("per_tensor"), c.fp8("per_tensor"))),
        "fp8, scale per tensor",
        "fp8 static per tensor",
        "fp8-tensor",
    ),
    "quark fp8 per channel and token": (
        c.quark(default=c.specs(c.fp8("per_channel"), c.fp8("per_channel", dynamic=True))),
        "fp8, scale per channel",
        "fp8 dynamic per token",
        "fp8-channel",
    ),
    "quark fp8 in blocks": (
        c.quark(
            default=c.specs(
                c.fp8("per_block", block_size=[128, 128]),
                c.fp8("per_group", dynamic=True, group_size=128),
            )
        ),
        "fp8, float32 scale per block of 128x128",
        "fp8 dynamic per 128 columns",
        "fp8-block-inv",
    ),
    "quark nvfp4": (
        c.quark(default=c.specs(NVFP4_QUARK, copy.deepcopy(NVFP4_QUARK))),
        "nvfp4, e4m3fn scale per group of 16",
        "nvfp4 static per 16 columns",
        "nvfp4-quark",
    ),
    "compressed-tensors mxfp4": (
        c.compressed(
            c.args(4, "group", **MX4), c.args(4, "group", **MX8), format="mxfp4-pack-quantized"
        ),
        "mxfp4, e8m0 scale per group of 32",
        "mxfp4 dynamic per 32 columns",
        "mxfp4-packed",
    ),
    "compressed-tensors nvfp4": (
        c.compressed(
            c.args(4, "tensor_group", **NV),
            c.args(4, "tensor_group", **NV_LOCAL),
            format="nvfp4-pack-quantized",
        ),
        "nvfp4, e4m3fn scale per group of 16",
        "nvfp4 static per 16 columns",
        "nvfp4-packed",
    ),
    "compressed-tensors mxfp8": (
        c.compressed(
            c.args(8, "group", **MX4), c.args(8, "group", **MX8), format="mxfp8-quantized"
        ),
        "mxfp8, e8m0 scale per group of 32",
        "mxfp8 dynamic per 32 columns",
        "mxfp8",
    ),
    "compressed-tensors fp8 dynamic": (
        c.compressed(c.args(8, "channel"), TOKEN),
        "fp8, scale per channel",
        "fp8 dynamic per token",
        "fp8-channel-2d",
    ),
    "compressed-tensors fp8 static": (
        c.compressed(c.args(8, "tensor"), c.args(8, "tensor")),
        "fp8, scale per tensor",
        "fp8 static per tensor",
        "fp8-tensor",
    ),
    "compressed-tensors fp8 in blocks": (
        c.compressed(c.args(8, "block", **BLOCK), c.args(8, "group", group_size=128, dynamic=True)),
        "fp8, float32 scale per block of 128x128",
        "fp8 dynamic per 128 columns",
        "fp8-block",
    ),
    "compressed-tensors, a strategy that is not written": (
        c.compressed({"num_bits": 8, "type": "float", "dynamic": False}),
        "fp8, scale per tensor",
        "not quantised",
        "fp8-tensor",
    ),
    "modelopt fp8": (
        c.modelopt("FP8"),
        "fp8, scale per tensor",
        "fp8 static per tensor",
        "fp8-tensor",
    ),
    "modelopt nvfp4": (
        c.modelopt("NVFP4"),
        "nvfp4, e4m3fn scale per group of 16",
        "nvfp4 static per 16 columns",
        "nvfp4",
    ),
    "modelopt in lower case": (
        c.modelopt("fp8_pb_wo"),
        "fp8, float32 scale per block of 128x128",
        "not quantised",
        "fp8-block-4d",
    ),
    "modelopt mxfp4": (
        c.modelopt("MXFP4"),
        "mxfp4, e8m0 scale per group of 32",
        "mxfp4 dynamic per 32 columns",
        "mxfp4",
    ),
    "deepseek": (
        c.DEEPSEEK_FP8,
        "fp8, float32 scale per block of 128x128",
        "fp8 dynamic per 128 columns",
        "fp8-block-inv",
    ),
    "deepseek with powers of two": (
        {**c.DEEPSEEK_FP8, "scale_fmt": "ue8m0"},
        "fp8, float32 scale per block of 128x128",
        "fp8 dynamic per 128 columns, ue8m0",
        "fp8-block-inv",
    ),
    "fp8 of a whole tensor": (
        {"quant_method": "fp8", "activation_scheme": "static"},
        "fp8, scale per tensor",
        "fp8 static per tensor",
        "fp8-tensor",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_normal_form(form: str) -> None:
    description, weight, activation, layout = FORMS[form]
    found = read(description)
    scheme = found.scheme(LAYER)
    assert (str(scheme), str(scheme.activation), scheme.layout) == (weight, activation, layout)
    assert found.unread == ()
    assert hash(found) == hash(read(copy.deepcopy(description))), "a value, and frozen"


def test_no_description_is_no_quantisation() -> None:
    found = checkpoint.read({"model_type": "llama", "torch_dtype": "float16"})
    assert found.producer == "none" and not found.scheme(LAYER).quantized
    assert found.dtype == "float16"


def test_gpt_oss_quantises_its_experts_alone() -> None:
    found = read(c.GPT_OSS)
    assert found.scheme("model.layers.7.mlp.experts.gate_up_proj").layout == "mxfp4-stacked"
    for name in ("model.layers.7.self_attn.q_proj", "model.layers.7.mlp.router", "lm_head"):
        assert found.scheme(name) == checkpoint.UNQUANTIZED


def test_deepseek_leaves_alone_what_its_files_hold_in_bfloat16() -> None:
    found = read(c.DEEPSEEK_FP8)
    for name in (
        "lm_head",
        "model.layers.5.mlp.gate",
        "model.layers.61.eh_proj",
        "model.layers.61.shared_head.head",
        "model.layers.5.self_attn.indexer.weights_proj",
    ):
        assert not found.scheme(name).quantized, name
    assert found.scheme("model.layers.61.mlp.experts.3.gate_proj").quantized


def test_overrides_of_quark_go_by_the_first_pattern_that_matches() -> None:
    block = c.specs(
        c.fp8("per_block", block_size=[128, 128]),
        c.fp8("per_group", dynamic=True, group_size=128),
    )
    plain = c.specs(None)
    found = read(c.quark("lm_head", layer_quant_config={"*.7.*q_proj": plain, "*q_proj": block}))
    assert found.scheme("model.layers.3.self_attn.q_proj").per == "block"
    assert not found.scheme("model.layers.7.self_attn.q_proj").quantized
    assert found.scheme("model.layers.7.self_attn.o_proj").weight == "mxfp4"


def test_a_class_of_quark_goes_before_its_global_scheme() -> None:
    tensor = c.specs(c.fp8("per_tensor"), c.fp8("per_tensor"))
    for name in ("Linear", "<class 'torch.nn.modules.linear.Linear'>"):
        found = read(c.quark(layer_type_quant_config={name: tensor}))
        assert found.scheme(LAYER).weight == "fp8", name


def test_names_of_compressed_tensors_go_before_expressions_and_both_before_classes() -> None:
    description = c.compressed(c.args(8, "channel"), TOKEN, "lm_head", format="mixed-precision")
    group = description["config_groups"]["group_0"]
    nvfp4 = {"weights": c.args(4, "tensor_group", **NV), "format": "nvfp4-pack-quantized"}
    tensor = {"weights": c.args(8, "tensor"), "format": "float-quantized"}
    description["config_groups"] = {
        "group_0": {**group, "format": "float-quantized"},
        "group_1": {**nvfp4, "targets": [r"re:.*mlp\.(gate|up|down)_proj$"]},
        "group_2": {**tensor, "targets": ["model.layers.2.mlp.down_proj"]},
    }
    found = read(description)
    assert found.scheme("model.layers.1.mlp.down_proj").weight == "nvfp4"
    assert found.scheme("model.layers.2.mlp.down_proj").per == "tensor"
    assert found.scheme("model.layers.1.self_attn.o_proj").per == "channel"
    assert not found.scheme("lm_head").quantized


def test_what_no_target_of_compressed_tensors_names_is_not_quantised() -> None:
    description = c.compressed(c.args(8, "channel"))
    description["config_groups"]["group_0"]["targets"] = [r"re:.*experts\..*"]
    found = read(description)
    assert found.scheme("model.layers.1.mlp.experts.5.up_proj").quantized
    assert not found.scheme("model.layers.1.self_attn.o_proj").quantized


MIXED = {
    "model.language_model.layers.0.mlp.experts": {"quant_algo": "W4A16_NVFP4", "group_size": 16},
    "model.language_model.layers.3.self_attn.q_proj": {"quant_algo": "FP8"},
    "model.language_model.layers.3.self_attn.o_proj": {"quant_algo": "UNQUANTIZED"},
}


def test_mixed_precision_of_modelopt_is_what_it_lists() -> None:
    found = read(c.modelopt("MIXED_PRECISION", "mtp*", "mtp.layers.0*", quantized_layers=MIXED))
    layer = "model.language_model.layers."
    assert found.scheme(f"{layer}0.mlp.experts.7.gate_proj").weight == "nvfp4"
    assert found.scheme(f"{layer}3.self_attn.q_proj").weight == "fp8"
    assert not found.scheme(f"{layer}3.self_attn.o_proj").quantized
    assert not found.scheme(f"{layer}1.mlp.experts.7.gate_proj").quantized


@pytest.mark.parametrize(
    ("description", "kv_cache"),
    [
        (c.modelopt("FP8", kv_cache_scheme={"num_bits": 8, "type": "float"}), "fp8"),
        (c.modelopt("NVFP4", kv_cache_scheme="NVFP4"), "nvfp4"),
        (c.compressed(c.args(8, "tensor"), kv_cache_scheme=c.args(8, "tensor")), "fp8"),
        (c.compressed(c.args(8, "tensor")), "none"),
        (
            c.quark(
                layer_quant_config={
                    f"*{name}_proj": {**c.MXFP4, "output_tensors": c.fp8("per_tensor")}
                    for name in "kv"
                },
                export={"kv_cache_group": ["*k_proj", "*v_proj"], "pack_method": "reorder"},
            ),
            "fp8",
        ),
    ],
    ids=["modelopt fp8", "modelopt nvfp4", "compressed-tensors", "none", "quark"],
)
def test_kv_cache(description: dict[str, Any], kv_cache: str) -> None:
    assert read(description).kv_cache == kv_cache


# ---- files


def test_a_folder_a_file_and_a_mapping_are_the_same(tmp_path: Path) -> None:
    config = c.with_quantization(c.LLAMA_8B, c.quark("lm_head"))
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    assert checkpoint.read(tmp_path) == checkpoint.read(file) == checkpoint.read(config)
    assert checkpoint.read(str(tmp_path)) == checkpoint.read(config)


def test_a_description_inside_text_config_is_found() -> None:
    nested = {"model_type": "qwen3_5", "text_config": {"quantization_config": c.quark("lm_head")}}
    assert checkpoint.read(nested).producer == "quark"


HF_QUANT = {
    "producer": {"name": "modelopt", "version": "0.29.0"},
    "quantization": {
        "quant_algo": "NVFP4",
        "kv_cache_quant_algo": "FP8",
        "group_size": 16,
        "exclude_modules": ["lm_head", "model.layers.0.self_attn*"],
    },
}


def test_hf_quant_config_alone_and_beside_a_config_without(tmp_path: Path) -> None:
    beside = tmp_path / "hf_quant_config.json"
    beside.write_text(json.dumps(HF_QUANT))
    alone = checkpoint.read(beside)
    assert alone == checkpoint.read(HF_QUANT)
    assert (alone.producer, alone.kv_cache) == ("modelopt", "fp8")
    assert not alone.scheme("model.layers.0.self_attn.q_proj").quantized
    assert alone.scheme("model.layers.1.self_attn.q_proj").weight == "nvfp4"
    (tmp_path / "config.json").write_text(json.dumps(c.LLAMA_8B))
    assert checkpoint.read(tmp_path) == alone == checkpoint.read(beside)


def test_two_descriptions_that_differ_are_refused(tmp_path: Path) -> None:
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(HF_QUANT))
    config = c.with_quantization(c.LLAMA_8B, c.modelopt("NVFP4", "lm_head"))
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="differ in their excluded modules"):
        checkpoint.read(tmp_path)
    config["quantization_config"]["ignore"].append("model.layers.0.self_attn*")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert checkpoint.read(tmp_path).default.weight == "nvfp4"
    config["quantization_config"]["quant_algo"] = "FP8"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="differ in their scheme"):
        checkpoint.read(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "No such file"), ("{", "no JSON"), ("[1]", "expected an object")],
)
def test_files_that_cannot_be_read(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=said):
        checkpoint.read(tmp_path)


# ---- refusals

INT4 = {"dtype": "int4", "qscheme": "per_group", "group_size": 128, "is_dynamic": False}

REFUSED = {
    "an unknown method": ({"quant_method": "quarks"}, "found 'quarks'; did you mean 'quark'"),
    "a method of integers": ({"quant_method": "gptq"}, "quant_method: found 'gptq'.*Known: quark"),
    "no method": ({"bits": 4}, "quant_method: found 'None'"),
    "quark: nested, as it once was": (
        {"quant_method": "quark", "quant_config": {"global_quant_config": c.MXFP4}},
        "found .*'quant_config'.*; expected a field global_quant_config",
    ),
    "compressed-tensors: no groups": (
        {"quant_method": "compressed-tensors", "format": "float-quantized"},
        "expected config_groups",
    ),
    "quark: integers": (
        c.quark(default=c.specs(INT4)),
        r"global_quant_config\.weight: found 'int4 per_group 128'; expected one of: fp4",
    ),
    "quark: another group": (
        c.quark(default=c.specs({**c.mx(dynamic=False), "group_size": 64})),
        "found 'fp4 per_group 64 e8m0'",
    ),
    "quark: a group that is no number": (
        c.quark(default=c.specs({**c.mx(dynamic=False), "group_size": "32"})),
        "group_size: found '32'; expected a positive integer",
    ),
    "quark: weights quantised at run time": (
        c.quark(default=c.specs(c.mx(dynamic=True))),
        "weight.is_dynamic: found True",
    ),
    "quark: zero points": (
        c.quark(default=c.specs({**c.mx(dynamic=False), "symmetric": False})),
        "zero points are not read",
    ),
    "quark: groups of rows": (
        c.quark(default=c.specs({**c.mx(dynamic=False), "ch_axis": 0})),
        "weight.ch_axis: found 0",
    ),
    "quark: simulated weights": (
        c.quark(export={"weight_format": "fake_quantized"}),
        "weight_format: found 'fake_quantized'; expected one of real_quantized",
    ),
    "quark: an unknown packing": (c.quark(export={"pack_method": "swap"}), "pack_method"),
    "quark: rotated activations": (
        c.quark(
            algo_config=[{"name": "rotation", "online_config": {"online_rotation_layers": ["a"]}}]
        ),
        "online_rotation_layers",
    ),
    "quark: quantised outputs": (
        c.quark(default={**c.MXFP4, "output_tensors": c.fp8("per_tensor")}),
        "output_tensors",
    ),
    "quark: an override that is unknown": (
        c.quark(layer_quant_config={"*q_proj": c.specs(INT4)}),
        r"layer_quant_config\['\*q_proj'\]\.weight: found 'int4",
    ),
    "quark: a cache that nothing describes": (
        c.quark(export={"kv_cache_group": ["*k_proj"]}),
        r"KV cache of \*k_proj: found 'no entry",
    ),
    "quark: an expression that is none": (c.quark("re:*mlp"), "no regular expression"),
    "quark: one pattern in place of a list": (
        {**c.quark(), "exclude": "lm_head"},
        "exclude: found 'lm_head'; expected a list",
    ),
    "compressed-tensors: integers": (
        c.compressed({"num_bits": 4, "type": "int", "group_size": 128}, format="pack-quantized"),
        "type: found 'int'; expected float",
    ),
    "compressed-tensors: another group": (
        c.compressed(c.args(4, "group", group_size=64)),
        "found '4 bits per group of 64'; expected one of: 4 bits per group of 32",
    ),
    "compressed-tensors: a format of another scheme": (
        c.compressed(c.args(4, "group", **MX4), format="nvfp4-pack-quantized"),
        "format of mxfp4 weights: found 'nvfp4-pack-quantized'; expected one of mxfp4-pack",
    ),
    "compressed-tensors: sparse": (
        c.compressed(c.args(8, "tensor"), sparsity_config={"format": "sparse-24-bitmask"}),
        "sparsity_config.format: found 'sparse-24-bitmask'",
    ),
    "compressed-tensors: rotations": (
        c.compressed(c.args(8, "tensor"), transform_config={"config_groups": {"R1": {}}}),
        "transform_config",
    ),
    "compressed-tensors: a preset": (
        {"quant_method": "compressed-tensors", "config_groups": {"FP8": ["Linear"]}},
        "written out",
    ),
    "modelopt: an unknown algorithm": (c.modelopt("NVFP"), "found 'NVFP'; did you mean 'NVFP4'"),
    "modelopt: another scaling": (c.modelopt("NVFP4_AWQ"), "found 'NVFP4_AWQ'"),
    "modelopt: mixed, and nothing listed": (c.modelopt("MIXED_PRECISION"), "quantized_layers"),
    "modelopt: another group": (c.modelopt("NVFP4", group_size=32), "group_size of NVFP4"),
    "modelopt: an unknown cache": (c.modelopt("FP8", kv_cache_scheme="INT8"), "KV cache"),
    "fp8: e5m2": ({**c.DEEPSEEK_FP8, "fmt": "e5m2"}, "fmt: found 'e5m2'"),
    "fp8: static blocks": ({**c.DEEPSEEK_FP8, "activation_scheme": "static"}, "expected dynamic"),
    "fp8: half a block": ({**c.DEEPSEEK_FP8, "weight_block_size": [128]}, r"\[rows, columns\]"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str) -> None:
    description, said = REFUSED[what]
    with pytest.raises(CheckpointError, match=said):
        read(description)


def test_two_groups_for_one_class_are_refused() -> None:
    description = c.compressed(c.args(8, "tensor"))
    other = c.compressed(c.args(8, "channel"))["config_groups"]["group_0"]
    description["config_groups"]["group_1"] = other
    with pytest.raises(CheckpointError, match="2 config_groups target 'Linear'"):
        read(description)


def test_a_field_that_is_not_known_is_told() -> None:
    assert read(c.quark(softmax_quant_spec={"dtype": "fp8_e4m3"})).unread == ("softmax_quant_spec",)
    assert read(c.quark(softmax_quant_spec=None)).unread == ()
    other = c.quark(layer_type_quant_config={"Conv2d": c.MXFP4})
    assert read(other).unread == ("layer_type_quant_config: Conv2d",)
    classes = c.compressed(c.args(8, "tensor"))
    classes["config_groups"]["group_0"]["targets"].append("LlamaExperts")
    assert read(classes).unread == ("config_groups.group_0.targets: LlamaExperts",)
