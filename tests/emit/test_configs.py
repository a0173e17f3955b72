"""What a config prints, Triton's own protobuf reads back; what tritonserver would refuse is refused before."""

from __future__ import annotations

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from model_repo.emit.configs import DynamicBatching, EnsembleStep, ModelConfig, Tensor
from model_repo.runtime.errors import BadInput


def read_back(config: ModelConfig) -> pb.ModelConfig:
    return text_format.Parse(config.to_pbtxt(), pb.ModelConfig())


def test_python_model_reads_back() -> None:
    config = ModelConfig(
        "m_encoder",
        inputs=(Tensor("input_ids", "INT32", (-1,), ragged=True), Tensor("scale", "FP32", optional=True)),
        outputs=(Tensor("embedding", "FP32", (384,)),),
        max_batch_size=64,
        instances=2,
        dynamic_batching=DynamicBatching(2000),
        parameters={"max_length": "256"},
    )
    message = read_back(config)
    assert (message.name, message.backend, message.platform) == ("m_encoder", "python", "")
    assert message.max_batch_size == 64
    ids, scale = message.input
    assert (ids.name, ids.data_type, list(ids.dims)) == ("input_ids", pb.TYPE_INT32, [-1])
    assert (ids.allow_ragged_batch, ids.optional) == (True, False)
    assert (scale.allow_ragged_batch, scale.optional) == (False, True)
    assert [(o.name, o.data_type, list(o.dims)) for o in message.output] == [
        ("embedding", pb.TYPE_FP32, [384])
    ]
    assert message.dynamic_batching.max_queue_delay_microseconds == 2000
    assert message.parameters["max_length"].string_value == "256"
    assert [(g.count, g.kind) for g in message.instance_group] == [(2, pb.ModelInstanceGroup.KIND_CPU)]
    assert not message.model_transaction_policy.decoupled
    assert not message.HasField("model_metrics")  # tritonserver 2.51 does not start with it


def test_a_model_on_a_gpu_says_which() -> None:
    message = read_back(ModelConfig("m", (Tensor("a", "FP32"),), (Tensor("b", "FP32"),), gpus=(0,)))
    (group,) = message.instance_group
    assert (group.count, group.kind, list(group.gpus)) == (1, pb.ModelInstanceGroup.KIND_GPU, [0])


def test_decoupled_model_has_no_batcher() -> None:
    message = read_back(ModelConfig("m", (Tensor("a", "STRING"),), (Tensor("b", "STRING"),), decoupled=True))
    assert message.model_transaction_policy.decoupled
    assert not message.HasField("dynamic_batching")


def ensemble(*steps: EnsembleStep) -> ModelConfig:
    return ModelConfig("m", (Tensor("text", "STRING"),), (Tensor("answer", "STRING"),), steps=steps)


def test_ensemble_reads_back() -> None:
    message = read_back(
        ensemble(
            EnsembleStep("first", {"x": "text"}, {"y": "ids"}),
            EnsembleStep("second", {"z": "ids"}, {"w": "answer"}),
        )
    )
    assert (message.platform, message.backend) == ("ensemble", "")
    assert not message.instance_group
    first, second = message.ensemble_scheduling.step
    assert (first.model_name, first.model_version) == ("first", -1)
    assert dict(first.input_map) == {"x": "text"}
    assert dict(second.output_map) == {"w": "answer"}


def test_ensemble_input_that_nobody_writes() -> None:
    with pytest.raises(BadInput, match="ids"):
        ensemble(EnsembleStep("second", {"z": "ids"}, {"w": "answer"}))


def test_ensemble_output_that_nobody_writes() -> None:
    with pytest.raises(BadInput, match="answer"):
        ensemble(EnsembleStep("first", {"x": "text"}, {"y": "ids"}))


def test_ensemble_tensor_written_twice() -> None:
    with pytest.raises(BadInput, match="exists already"):
        ensemble(EnsembleStep("first", {"x": "text"}, {"y": "text", "w": "answer"}))


@pytest.mark.parametrize("name", ["", "a/b", "../up", ".hidden", "a b", "naïve", "x" * 101])
def test_names_that_cannot_be_served(name: str) -> None:
    with pytest.raises(BadInput, match="cannot be served"):
        ModelConfig(name, (Tensor("a", "STRING"),), (Tensor("b", "STRING"),))


@pytest.mark.parametrize("dims", [(), (0,), (-2,)])
def test_dims_that_triton_refuses(dims: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match="dims"):
        Tensor("a", "FP32", dims)


def test_batching_needs_a_batch_size() -> None:
    with pytest.raises(BadInput, match="max_batch_size"):
        ModelConfig(
            "m", (Tensor("a", "STRING"),), (Tensor("b", "STRING"),), dynamic_batching=DynamicBatching(1)
        )
    with pytest.raises(BadInput, match="max_batch_size"):
        ModelConfig("m", (Tensor("a", "STRING", ragged=True),), (Tensor("b", "STRING"),))


def test_two_tensors_of_one_name() -> None:
    with pytest.raises(BadInput, match="names of their own"):
        ModelConfig("m", (Tensor("a", "STRING"), Tensor("a", "BOOL")), (Tensor("b", "STRING"),))
