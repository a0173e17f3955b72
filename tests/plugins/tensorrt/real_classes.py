"""Holds our Python to TensorRT 11's own classes: `python -m tests.plugins.tensorrt.real_classes KERNELS FOLDER`; and
the runtime's to TensorRT-RTX's: `python -m tests.plugins.tensorrt.real_classes rtx`.

The bindings' wheel is real and small; what it links is not to be had without a GPU, so three libraries of functions
that do nothing stand in for it (in FOLDER). That is enough to look up names and signatures, and to make objects of our
classes that derive from TensorRT's. In a process of its own, which prints what is wrong, one problem a line.
"""

from __future__ import annotations

import ast
import ctypes
import importlib
import io
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from plugins.cpu.build import find_compiler
from plugins.toolchain import run_command
from tests.plugins.tensorrt.real_names import OF_RTX_ALONE, ROOT, Names

FOLDERS = ("pipeline/targets/tensorrt", "plugins/tensorrt")
RUNTIME = tuple(f"model_repo/runtime/tensorrt_{name}.py" for name in ("engine", "package", "words"))
"""What executes engines, of TensorRT and of TensorRT-RTX."""
EXECUTION = frozenset(
    {
        *("Runtime", "deserialize_cuda_engine", "num_io_tensors", "get_tensor_name", "get_tensor_mode"),
        *("get_tensor_dtype", "get_tensor_shape", "get_tensor_profile_shape", "num_optimization_profiles"),
        *("device_memory_size_v2", "streamable_weights_size", "weight_streaming_budget_v2"),
        *("create_execution_context", "USER_MANAGED", "set_device_memory", "set_optimization_profile_async"),
        *("set_input_shape", "set_tensor_address", "execute_async_v3", "load_library", "ILogger"),
    }
)
"""Names that must have been looked up; else the search has lost track of them."""
SOURCES = [
    *(path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py"))),
    *(ROOT / name for name in RUNTIME),
    ROOT / "tests/plugins/tensorrt/test_gpu.py",
]
LIBRARIES = ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11")
LINKED = (
    *("createInferBuilder_INTERNAL", "createInferRuntime_INTERNAL", "createInferRefitter_INTERNAL"),
    *(
        "getPluginRegistry",
        "getBuilderPluginRegistry",
        "getLogger",
        "getInferLibVersion",
        "initLibNvInferPlugins",
    ),
    *("createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getNvOnnxParserVersion"),
)


def bindings(folder: Path) -> Any:
    """The real module, over libraries that do nothing."""
    source = folder / "nothing.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in LINKED))
    for name in LIBRARIES:
        command = [*find_compiler().command, "-x", "c", "-shared", "-fPIC", f"-Wl,-soname,{name}"]
        run_command([*command, str(source), "-o", str(folder / name)])
        ctypes.CDLL(str(folder / name), ctypes.RTLD_GLOBAL)
    return importlib.import_module("tensorrt_bindings")


def made_objects(trt: Any, kernels_path: str) -> Iterator[str]:
    """Our classes, made on TensorRT's and called as it would."""
    from model_repo.runtime.tensorrt_words import logger_of
    from pipeline.targets.tensorrt.builder import new_logger
    from pipeline.targets.tensorrt.monitor import progress_monitor
    from plugins.cuda.library import Library
    from plugins.tensorrt import names
    from plugins.tensorrt.python_plugin import FORMS, _creator_class
    from tests.plugins.tensorrt.calls import calls

    logger = new_logger(trt)
    logger.log(trt.ILogger.ERROR, "words")
    if logger.said() != "words":
        yield "the logger does not keep what it is told"
    other = logger_of(trt)
    other.log(trt.ILogger.INTERNAL_ERROR, "first")
    other.log(trt.ILogger.ERROR, "second")
    other.log(trt.ILogger.WARNING, "third")
    if (other.said(), other.said()) != ("first; second", ""):
        yield "the runtime's logger does not keep what it is told"
    with progress_monitor(trt, io.StringIO()) as monitor:
        monitor.phase_start("phase", None, 2)
        if monitor.step_complete("phase", 0) is not True:
            yield "the progress monitor stops the build"
        monitor.phase_finish("phase")
    kernels = Library(Path(kernels_path))
    kinds: Mapping[str, Any] = {
        "float16": trt.float16,
        "float32": trt.float32,
        "int32": trt.int32,
        "uint8": trt.uint8,
        "int8": trt.int8,
    }
    for form in FORMS.values():
        call = next(calls(kernels, form.name))
        creator = _creator_class(trt, kernels, form)()
        listed = {field.name for field in creator.field_names}
        text = np.frombuffer(",".join(call.form.inputs).encode() + b"\0", np.int8)
        fields = [trt.PluginField(names.INPUTS, text, trt.PluginFieldType.CHAR)]
        for name, whole in form.attribute_names(call.form.description).items():
            number = np.array([call.form.attributes.get(name, 0)], np.int32 if whole else np.float32)
            kind = trt.PluginFieldType.INT32 if whole else trt.PluginFieldType.FLOAT32
            if name in call.form.attributes:
                fields.append(trt.PluginField(name, number, kind))
        if not {field.name for field in fields} <= listed:
            yield f"{form.name}: the creator lists {sorted(listed)}"
        built = creator.create_plugin("node", trt.PluginFieldCollection(fields), trt.TensorRTPhase.BUILD)
        copy = built.clone()
        state = copy.get_fields_to_serialize()
        plugin = creator.create_plugin("node", state, trt.TensorRTPhase.RUNTIME).attach_to_context(None)
        descs = []
        for tensor in call.order:
            desc = trt.DynamicPluginTensorDesc()
            desc.desc.type = kinds[str(tensor.dtype).removeprefix("torch.")]
            desc.desc.format = trt.TensorFormat.LINEAR
            desc.desc.dims = desc.min = desc.opt = desc.max = trt.Dims(list(tensor.shape))
            descs.append(desc)
        count = len(call.form.inputs)
        if not all(plugin.supports_format_combination(place, descs, count) for place in range(len(descs))):
            yield f"{form.name}: refuses the tensors of its own case"
        types = [desc.desc.type for desc in descs]
        if plugin.get_output_data_types(types[:count]) != types[count:]:
            yield f"{form.name}: other types of outputs"
        if plugin.get_workspace_size(descs[:count], descs[count:]) != call.workspace().numel():
            yield f"{form.name}: another workspace"
        workspace, before = call.workspace(), call.tensors[call.form.outputs[0]].clone()
        places = [tensor.data_ptr() for tensor in call.order]
        for one, ran in ((built, False), (plugin, True)):
            static = [desc.desc for desc in descs]
            one.enqueue(
                static[:count], static[count:], places[:count], places[count:], workspace.data_ptr(), 0
            )
            after = call.tensors[call.form.outputs[0]]
            if (after.nan_to_num() == before.nan_to_num()).all().item() is ran:
                yield f"{form.name}: {'nothing came out' if ran else 'a plugin of the build phase ran'}"


def looked_up(trt: Any, paths: Iterable[Path]) -> set[str]:
    """The names that these files use of `trt`; prints what is wrong with them."""
    seen: set[str] = set()
    for path in paths:
        names = Names(trt, path)
        names.visit(ast.parse(path.read_text(encoding="utf-8")))
        seen |= names.seen
        print("".join(f"{words}\n" for words in names.problems), end="")
    print("".join(f"{name} was not looked up\n" for name in sorted(EXECUTION - seen)), end="")
    return seen


def check_rtx() -> None:
    """Holds the runtime's adapter to TensorRT-RTX's classes, which need no stand-ins."""
    trt = importlib.import_module("tensorrt_rtx")
    seen = looked_up(trt, [ROOT / name for name in RUNTIME])
    print(f"checked {len(seen)} names of TensorRT-RTX {trt.__version__}")


def main() -> None:
    if sys.argv[1:] == ["rtx"]:
        check_rtx()
        return
    kernels, folder = sys.argv[1:]
    trt = bindings(Path(folder))
    seen = looked_up(trt, SOURCES)
    for name in sorted(
        name for name in OF_RTX_ALONE if hasattr(trt, name) or hasattr(trt.IBuilderConfig, name)
    ):
        print(f"TensorRT has {name} too")
    print("".join(f"{words}\n" for words in made_objects(trt, kernels)), end="")
    print(f"checked {len(seen)} names of TensorRT {trt.__version__}")


if __name__ == "__main__":
    main()
