"""Quantized checkpoints against numbers of compressed-tensors and torch, and packing rules written out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

from calibration.checkpoints.reading import QuantizedCheckpoint, open_quantized
from calibration.schemes import Scheme, dequantize
from model_repo.runtime.errors import BadInput

from .quantized_checkpoints import awq_layer, gptq_layer, write

OUT, WIDTH, GROUP = 16, 64, 32
NAME = "model.layers.0.mlp.up_proj"


def opened(file: Path) -> QuantizedCheckpoint:
    found = open_quantized(file.parent, [file])
    assert found is not None
    return found


def numbers(bits: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unsigned codes [out, in], zero points and float16 scales [out, groups]."""
    draw = np.random.default_rng(seed)
    groups = WIDTH // GROUP
    codes = draw.integers(0, 2**bits, (OUT, WIDTH))
    zeros = draw.integers(1, 2**bits, (OUT, groups))
    return codes, zeros, draw.uniform(0.001, 0.1, (OUT, groups)).astype(np.float16)


def meant(codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """(code - zero point) * scale, in float64."""
    wide = [np.repeat(part.astype(np.float64), WIDTH // part.shape[1], axis=1) for part in (zeros, scales)]
    return (codes - wide[0]) * wide[1]


@pytest.mark.parametrize("v2", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_gptq(tmp_path: Path, bits: int, v2: bool) -> None:
    codes, zeros, scales = numbers(bits)
    config = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": GROUP,
        "checkpoint_format": "gptq_v2" if v2 else "gptq",
    }
    found = opened(write(tmp_path, {NAME: gptq_layer(codes, zeros, scales, bits, v2)}, config))
    quantized = found[f"{NAME}.weight"]
    np.testing.assert_allclose(dequantize(quantized), meant(codes, zeros, scales), rtol=1e-6)
    np.testing.assert_array_equal(quantized.scales, scales.astype(np.float32))
    assert quantized.scheme == Scheme("int4" if bits == 4 else "int8", "block", GROUP, symmetric=False)


def test_gptq_of_symmetric_weights_needs_no_zero_points(tmp_path: Path) -> None:
    codes, zeros, scales = numbers(4)
    zeros[:] = 8
    found = opened(
        write(tmp_path, {NAME: gptq_layer(codes, zeros, scales, 4)}, {"quant_method": "gptq", "bits": 4})
    )
    quantized = found[f"{NAME}.weight"]
    assert quantized.zero_points is None
    assert quantized.scheme == Scheme("int4", "block", GROUP)
    np.testing.assert_allclose(dequantize(quantized), meant(codes, zeros, scales), rtol=1e-6)


def test_gptq_with_scattered_groups_is_refused(tmp_path: Path) -> None:
    layer = gptq_layer(*numbers(4), 4)
    layer["g_idx"] = layer["g_idx"].flip(0)
    found = opened(write(tmp_path, {NAME: layer}, {"quant_method": "gptq", "bits": 4, "desc_act": True}))
    with pytest.raises(BadInput, match=r"up_proj\.g_idx: the groups' inputs lie scattered"):
        found[f"{NAME}.weight"]


def test_awq(tmp_path: Path) -> None:
    codes, zeros, scales = numbers(4)
    config = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}
    found = opened(write(tmp_path, {NAME: awq_layer(codes, zeros, scales)}, config))
    np.testing.assert_allclose(dequantize(found[f"{NAME}.weight"]), meant(codes, zeros, scales), rtol=1e-6)


ARGUMENTS = [
    (
        "pack-quantized",
        QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy="group", group_size=GROUP),
    ),
    (
        "pack-quantized",
        QuantizationArgs(num_bits=4, type="int", symmetric=False, strategy="group", group_size=GROUP),
    ),
    ("pack-quantized", QuantizationArgs(num_bits=8, type="int", symmetric=True, strategy="channel")),
    ("int-quantized", QuantizationArgs(num_bits=8, type="int", symmetric=True, strategy="channel")),
    ("int-quantized", QuantizationArgs(num_bits=8, type="int", symmetric=True, strategy="tensor")),
    ("float-quantized", QuantizationArgs(num_bits=8, type="float", symmetric=True, strategy="channel")),
    ("float-quantized", QuantizationArgs(num_bits=8, type="float", symmetric=True, strategy="tensor")),
]


@pytest.mark.parametrize(("name", "arguments"), ARGUMENTS, ids=lambda value: str(value)[:40])
def test_compressed_tensors(tmp_path: Path, name: str, arguments: QuantizationArgs) -> None:
    """Compressed by the library, read here, and decompressed by the library: the same numbers."""
    torch.manual_seed(0)
    weight = torch.randn(OUT, WIDTH)
    groups = {"group": WIDTH // GROUP, "channel": 1}.get(str(arguments.strategy), 0)
    parts = weight.reshape(OUT, groups, -1) if groups else weight.reshape(1, 1, -1)
    highest = 448 if arguments.type == "float" else 2 ** (arguments.num_bits - 1) - 1
    state = {"weight": weight, "weight_scale": parts.abs().amax(dim=-1) / highest}
    if not groups:
        state["weight_scale"] = state["weight_scale"].reshape(1)
    if not arguments.symmetric:
        state["weight_zero_point"] = torch.randint(-8, 8, (OUT, groups), dtype=torch.int8)
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
    compressor = BaseCompressor.get_value_from_registry(name)
    compressed = compressor.compress(dict(state), scheme)
    wanted = compressor.decompress(dict(compressed), scheme)["weight"]
    config = {
        "quant_method": "compressed-tensors",
        "format": name,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": arguments.model_dump(mode="json")}},
    }
    found = opened(write(tmp_path, {NAME: compressed}, config))[f"{NAME}.weight"]
    np.testing.assert_allclose(dequantize(found), wanted.float().numpy(), rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(np.unique(found.scales), np.unique(state["weight_scale"].numpy()))
    assert (found.zero_points is None) == arguments.symmetric


def test_modelopt_fp8(tmp_path: Path) -> None:
    weight = torch.randn(OUT, WIDTH)
    scale = weight.abs().max() / 448
    codes = (weight / scale).to(torch.float8_e4m3fn)
    layer = {"weight": codes, "weight_scale": scale, "input_scale": torch.tensor(0.25)}
    found = opened(write(tmp_path, {NAME: layer}, {"quant_method": "modelopt", "quant_algo": "FP8"}))
    np.testing.assert_allclose(
        dequantize(found[f"{NAME}.weight"]), (codes.float() * scale).numpy(), rtol=1e-6
    )
    assert found.input_scale(f"{NAME}.weight") == 0.25


E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Values of the codes 0 to 7; the fourth bit is the sign."""


def test_modelopt_nvfp4_from_its_own_config_file(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    codes = draw.integers(0, 16, (OUT, WIDTH))
    scale = torch.from_numpy(draw.uniform(1, 400, (OUT, WIDTH // 16)).astype(np.float32)).to(
        torch.float8_e4m3fn
    )
    layer = {
        "weight": torch.from_numpy((codes[:, ::2] | codes[:, 1::2] << 4).astype(np.uint8)),
        "weight_scale": scale,
        "weight_scale_2": torch.tensor(0.001),
    }
    file = write(tmp_path, {NAME: layer}, None)
    about = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "group_size": 16}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(about))
    values = np.array([*E2M1, *(-value for value in E2M1)])[codes]
    wanted = values * np.repeat(scale.float().numpy(), 16, axis=1) * np.float32(0.001)
    found = opened(file)[f"{NAME}.weight"]
    np.testing.assert_allclose(dequantize(found), wanted, rtol=1e-6)
    assert found.scheme == Scheme("nvfp4", "block", 16)


@pytest.mark.parametrize("channels", [True, False])
def test_quantization_aware_training_is_torchs_fake_quantization(tmp_path: Path, channels: bool) -> None:
    weight = torch.randn(OUT, WIDTH)
    scale = weight.abs().amax(dim=1) / 100 if channels else weight.abs().max().reshape(1) / 100
    zeros = torch.zeros(len(scale), dtype=torch.int32)
    if channels:
        wanted = torch.fake_quantize_per_channel_affine(weight, scale, zeros, 0, -128, 127)
    else:
        wanted = torch.fake_quantize_per_tensor_affine(weight, scale, zeros, -128, 127)
    layer = {"weight": weight, "weight_fake_quant.scale": scale, "weight_fake_quant.zero_point": zeros}
    file = write(tmp_path, {NAME: layer}, None, **{"model.norm.weight": torch.ones(WIDTH)})
    found = opened(file)
    np.testing.assert_allclose(dequantize(found[f"{NAME}.weight"]), wanted.numpy(), rtol=1e-6, atol=1e-7)
    assert [name for name, _ in found.plain()] == ["model.norm.weight"]


def test_what_is_no_quantized_layer_stays_a_parameter(tmp_path: Path) -> None:
    plain = {
        "lm_head.weight": torch.randn(3, 4),
        f"{NAME}.bias": torch.randn(OUT),
        "model.embed_tokens.weight": torch.randn(3, 4),
    }
    file = write(tmp_path, {NAME: gptq_layer(*numbers(4), 4)}, {"quant_method": "gptq", "bits": 4}, **plain)
    found = opened(file)
    assert list(found) == [f"{NAME}.weight"]
    assert {name: array.tolist() for name, array in found.plain()} == {
        name: t.tolist() for name, t in plain.items()
    }
    assert "lm_head.weight" not in found
    assert found.input_scale(f"{NAME}.weight") is None


def test_a_float_checkpoint_is_none(tmp_path: Path) -> None:
    file = write(tmp_path, {NAME: {"weight": torch.randn(4, 4)}}, None)
    assert open_quantized(tmp_path, [file]) is None


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"quant_method": "bitsandbytes"}, "quantized by 'bitsandbytes' are not read; those of gptq"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "version 'gemv'"),
        ({"quant_method": "compressed-tensors", "format": "marlin-24"}, "'marlin-24' are not read"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "'W4A8_AWQ' are not read"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "no layer of the checkpoint is quantized"),
    ],
)
def test_formats_that_are_not_read_are_named(tmp_path: Path, quantization: dict, message: str) -> None:
    file = write(tmp_path, {NAME: gptq_layer(*numbers(4), 4)}, quantization)
    with pytest.raises(BadInput, match=message):
        open_quantized(tmp_path, [file])


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("scales", torch.zeros(WIDTH // GROUP, OUT), "32 scales are zero or not finite"),
        ("scales", torch.ones(3, OUT), "do not fit a weight of"),
        ("scales", -torch.ones(WIDTH // GROUP, OUT), "negative"),
        (
            "qzeros",
            torch.zeros(WIDTH // GROUP, 1, dtype=torch.int32),
            "hold 8 numbers of 4 bits; 16 are needed",
        ),
        ("qzeros", None, "lacks model.layers.0.mlp.up_proj.qzeros"),
    ],
)
def test_broken_layers_are_named(
    tmp_path: Path, name: str, tensor: torch.Tensor | None, message: str
) -> None:
    layer = gptq_layer(*numbers(4), 4)
    if tensor is None:
        del layer[name]
    else:
        layer[name] = tensor
    del layer["g_idx"]
    found = opened(write(tmp_path, {NAME: layer}, {"quant_method": "gptq", "bits": 4}))
    with pytest.raises(BadInput, match=message):
        found[f"{NAME}.weight"]


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    file = write(tmp_path, {NAME: gptq_layer(*numbers(4), 4)}, {"quant_method": "gptq", "bits": 4})
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(BadInput, match=r"model\.safetensors is truncated or corrupt"):
        open_quantized(tmp_path, [file])
