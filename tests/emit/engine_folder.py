"""Engine folders as emit sees them: a manifest and the files it lists. Nothing in them computes."""

from __future__ import annotations

from pathlib import Path

from model_repo.runtime.contract import EngineSpec, KVSpec, Limits
from model_repo.runtime.manifest import FileRecord, Manifest


def decoder_spec(name: str = "tiny") -> EngineSpec:
    """A decoder of one layer."""
    return EngineSpec(
        kind="decoder",
        name=name,
        target="onnxruntime",
        precision="fp32",
        graph="engine.onnx",
        plugin="libslipway_cpu.so",
        vocab_size=32,
        max_length=48,
        kv=(KVSpec(0, 1, 16, 16, 0, "float32"),),
        limits=Limits(max_batch=4, token_budget=16, max_length=48, block_size=16, num_blocks=8),
    )


def encoder_spec(name: str = "tiny") -> EngineSpec:
    """An encoder with 24 numbers an embedding."""
    return EngineSpec(
        kind="encoder",
        name=name,
        target="onnxruntime",
        precision="fp32",
        graph="engine.onnx",
        plugin=None,
        vocab_size=32,
        max_length=48,
        hidden_size=24,
        encoder_inputs=("input_ids", "attention_mask"),
    )


def engine_folder(folder: Path, spec: EngineSpec) -> Path:
    """Writes an engine's files and engine.json into `folder`, beside something that is none of its files."""
    contents = {
        "engine.onnx": b"graph of " + spec.name.encode(),
        "weights/0123abcd": b"\x00" * 2048,
        "tokenizer.json": b"{}",
        "chat_template.jinja": b"{{ messages }}",
    }
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (folder / "export.onnx").write_bytes(b"another stage's file")
    Manifest(
        stage="compile",
        recipe={},
        recipe_sha256="",
        inputs=(),
        outputs=tuple(FileRecord.of(folder / name, folder) for name in contents),
        versions={"onnxruntime": "1.31.1"},
        seconds=1.0,
        parity="not run: a test",
        command=(),
        engine=spec,
    ).write(folder / "engine.json")
    return folder
