"""Holds our Python to TensorRT 11's own classes: `python -m tests.plugins.tensorrt.real_classes KERNELS FOLDER`.

The bindings' wheel is real and small; what it links is not to be had without a GPU, so three libraries of functions
that do nothing stand in for it (in FOLDER). That is enough to look up names and signatures, and to make objects of our
classes that derive from TensorRT's. In a process of its own, which prints what is wrong, one problem a line.
"""

from __future__ import annotations

import ast
import ctypes
import importlib
import io
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from plugins.cpu.build import find_compiler
from plugins.toolchain import run_command

ROOT = Path(__file__).parents[3]
SOURCES = sorted(
    [*(ROOT / "pipeline/targets/tensorrt").glob("*.py"), *(ROOT / "plugins/tensorrt").glob("*.py")]
)
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
CALLED = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "parser": "OnnxParser",
}
"""What parameters of these names hold where they are annotated as Any."""
UNDOCUMENTED = {"get_plugin_registry": "IPluginRegistry", "get_error": "ParserError"}
"""Results whose Python classes the bindings' documentation does not name."""
OF_RTX_ALONE = frozenset({"ComputeCapability", "num_compute_capabilities", "set_compute_capability"})
"""Names that TensorRT-RTX has beyond TensorRT; our code reaches them when compute capabilities are given."""
OUR_OWN = frozenset({"said"})
"""Methods that our classes add to TensorRT's."""


def bindings(folder: Path) -> Any:
    """The real module, over libraries that do nothing."""
    source = folder / "nothing.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in LINKED))
    for name in LIBRARIES:
        command = [*find_compiler().command, "-x", "c", "-shared", "-fPIC", f"-Wl,-soname,{name}"]
        run_command([*command, str(source), "-o", str(folder / name)])
        ctypes.CDLL(str(folder / name), ctypes.RTLD_GLOBAL)
    return importlib.import_module("tensorrt_bindings")


class Names(ast.NodeVisitor):
    """Follows names of TensorRT's through a file, as far as they can be known without running it."""

    def __init__(self, trt: Any, path: Path) -> None:
        self.trt = trt
        self.path = path
        self.problems: list[str] = []
        self.seen: set[str] = set()
        self.scope: dict[str, Any] = {}

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer, self.scope = self.scope, dict(self.scope)
        for argument in node.args.args:
            if argument.arg == "trt":
                continue
            untyped = isinstance(argument.annotation, ast.Name) and argument.annotation.id == "Any"
            self.scope[argument.arg] = self.instance(CALLED.get(argument.arg) if untyped else None)
        self.generic_visit(node)
        self.scope = outer

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        bases = [self.value(base) for base in node.bases]
        bases = [base for base in bases if isinstance(base, type)]
        for method in node.body:
            if bases and isinstance(method, ast.FunctionDef) and not method.name.startswith("__"):
                self.method(method, bases)
        self.generic_visit(node)

    def method(self, method: ast.FunctionDef, bases: list[type]) -> None:
        """One that TensorRT calls: it must know the name, and give as many arguments."""
        known = [getattr(base, method.name) for base in bases if hasattr(base, method.name)]
        if not known and method.name not in OUR_OWN:
            self.wrong(method, f"{', '.join(base.__name__ for base in bases)} has no {method.name}")
        counts = {len(parameters) for found in known for parameters, _ in signatures(found)}
        if counts and len(method.args.args) not in counts:
            self.wrong(
                method,
                f"{method.name} has {len(method.args.args)} parameters; TensorRT's has {sorted(counts)}",
            )

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            if isinstance(target, ast.Name):
                self.scope[target.id] = self.value(node.value)
            elif isinstance(target, ast.Tuple):  # several made by a function of ours
                for one in target.elts:
                    if isinstance(one, ast.Name) and one.id in CALLED:
                        self.scope[one.id] = self.instance(CALLED[one.id])

    def visit_GeneratorExp(self, node: ast.GeneratorExp | ast.ListComp) -> None:
        for part in node.generators:
            items = self.value(part.iter)
            if isinstance(part.target, ast.Name):
                self.scope[part.target.id] = items.item if isinstance(items, List) else None
        self.generic_visit(node)

    visit_ListComp = visit_GeneratorExp

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.value(node)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        called = self.value(node.func)
        choices = (
            signatures(called.__init__ if isinstance(called, type) else called) if called is not None else []
        )
        own = 0 if not isinstance(node.func, ast.Attribute) or self.is_module(node.func.value) else 1
        own = 1 if isinstance(called, type) else own
        spread = any(isinstance(argument, ast.Starred) for argument in node.args)
        given = {keyword.arg for keyword in node.keywords}
        fits = any(
            (spread or own + len(node.args) + len(given) <= len(parameters))
            and (spread or own + len(node.args) + len(given) >= required)
            and given <= set(parameters)
            for parameters, required in choices
        )
        if choices and not fits and not self.is_class_call(node):
            self.wrong(node, f"{ast.unparse(node)[:80]}: TensorRT's takes {[list(p) for p, _ in choices]}")
        self.generic_visit(node)

    def is_class_call(self, node: ast.Call) -> bool:
        """`trt.X.__init__(self)` and the like, which name their own object."""
        return isinstance(node.func, ast.Attribute) and isinstance(self.value(node.func.value), type)

    def is_module(self, node: ast.expr) -> bool:
        return isinstance(node, ast.Name) and node.id == "trt"

    def value(self, node: ast.expr) -> Any:
        """What an expression is: an object of the module, an `Instance`, or None where it is not TensorRT's."""
        if isinstance(node, ast.Name):
            if node.id == "trt":
                return self.trt
            return self.scope.get(node.id)
        if isinstance(node, ast.Call):
            return self.result(self.value(node.func))
        if isinstance(node, ast.ListComp):
            return List(self.value(node.elt))
        if isinstance(node, ast.Subscript):
            found = self.value(node.value)
            return found if isinstance(found, List) and isinstance(node.slice, ast.Slice) else None
        if not isinstance(node, ast.Attribute):
            return None
        holder = self.value(node.value)
        if holder is None:
            return None
        holder = holder.kind if isinstance(holder, Instance) else holder
        name = node.attr
        self.seen.add(name)
        if not hasattr(holder, name):
            if name not in OF_RTX_ALONE:
                self.wrong(node, f"{getattr(holder, '__name__', holder)} has no {name}")
            return None
        found = getattr(holder, name)
        return self.result(found.fget) if isinstance(found, property) else found

    def result(self, called: Any) -> Any:
        if isinstance(called, type):
            return Instance(called)
        if getattr(called, "__name__", None) in UNDOCUMENTED:
            return self.instance(UNDOCUMENTED[called.__name__])
        first = (getattr(called, "__doc__", None) or "").strip().split("\n")[0]
        said = re.search(r"-> (?:[\w.]+\.)?(\w+)\s*$", first)
        return self.instance(said[1]) if said else None

    def instance(self, name: str | None) -> Any:
        kind = getattr(self.trt, name, None) if name else None
        return Instance(kind) if isinstance(kind, type) else None

    def wrong(self, node: ast.AST, words: str) -> None:
        self.problems.append(f"{self.path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}: {words}")


class Instance:
    """An object of one of TensorRT's classes."""

    def __init__(self, kind: type) -> None:
        self.kind = kind


class List(NamedTuple):
    """A list of such objects."""

    item: Any


def signatures(function: Any) -> list[tuple[list[str], int]]:
    """Parameters by name, and how many must be given, of each overload, as the bindings document them."""
    text = getattr(function, "__doc__", None) or ""
    found = []
    for line in re.findall(r"^(?:\d+\. )?\w+\((self:.*|.*)\) -> ", text, re.MULTILINE):
        if line.startswith("*args"):
            continue
        parts = re.split(r",\s(?=\w+:)", line) if line else []
        names = [part.partition(":")[0].strip() for part in parts]
        if parts and parts[0].startswith("self: typing."):
            names.insert(0, "self")  # get_aliased_input: its one argument is documented as self
        found.append((names, sum(" = " not in part for part in parts)))
    return found


def made_objects(trt: Any, kernels_path: str) -> Iterator[str]:
    """Our classes, made on TensorRT's and called as it would."""
    from pipeline.targets.tensorrt.builder import _logger
    from pipeline.targets.tensorrt.monitor import progress_monitor
    from plugins.cuda.library import Library
    from plugins.tensorrt import names
    from plugins.tensorrt.python_plugin import FORMS, _creator_class
    from tests.plugins.tensorrt.calls import calls

    logger = _logger(trt)
    logger.log(trt.ILogger.ERROR, "words")
    if logger.said() != "words":
        yield "the logger does not keep what it is told"
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


def main() -> None:
    kernels, folder = sys.argv[1:]
    trt = bindings(Path(folder))
    seen: set[str] = set()
    for path in SOURCES:
        names = Names(trt, path)
        names.visit(ast.parse(path.read_text(encoding="utf-8")))
        seen |= names.seen
        print("".join(f"{words}\n" for words in names.problems), end="")
    for name in sorted(
        name for name in OF_RTX_ALONE if hasattr(trt, name) or hasattr(trt.IBuilderConfig, name)
    ):
        print(f"TensorRT has {name} too")
    print("".join(f"{words}\n" for words in made_objects(trt, kernels)), end="")
    print(f"checked {len(seen)} names of TensorRT {trt.__version__}")


if __name__ == "__main__":
    main()
