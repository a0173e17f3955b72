"""Follows TensorRT's names through a file of ours, and holds them to its classes, without running the file."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[3]
CALLED = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "parser": "OnnxParser",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
}
"""What parameters of these names hold where they are annotated as Any, and variables that a function of ours gives."""
ALWAYS = frozenset({"context"})
"""Those of them that variables hold too, whatever they were assigned from."""
UNDOCUMENTED = {
    "get_plugin_registry": "IPluginRegistry",
    "get_error": "ParserError",
    "deserialize_cuda_engine": "ICudaEngine",
    "create_execution_context": "IExecutionContext",
}
"""Results whose Python classes the bindings' documentation does not name."""
OF_RTX_ALONE = frozenset({"ComputeCapability", "num_compute_capabilities", "set_compute_capability"})
"""Names that TensorRT-RTX has beyond TensorRT; our code reaches them when compute capabilities are given."""
OUR_OWN = frozenset({"said"})
"""Methods that our classes add to TensorRT's."""


class Names(ast.NodeVisitor):
    """Follows names of TensorRT's through a file, as far as they can be known without running it."""

    def __init__(self, trt: Any, path: Path) -> None:
        self.trt = trt
        self.path = path
        self.problems: list[str] = []
        self.seen: set[str] = set()
        self.scope: dict[str, Any] = {}
        self.fields: dict[str, Any] = {}  # of self, from where it is first assigned

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
            self.assign(target, node.value)

    def assign(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name):
            found = self.value(value)
            named = CALLED[target.id] if found is None and target.id in ALWAYS else None
            self.scope[target.id] = self.instance(named) if named else found
        elif isinstance(target, ast.Attribute) and self.is_self(target.value):
            self.fields.setdefault(target.attr, self.value(value))
        elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, its in zip(target.elts, value.elts, strict=True):
                self.assign(one, its)
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

    def is_self(self, node: ast.expr) -> bool:
        return isinstance(node, ast.Name) and node.id == "self"

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
            if not isinstance(found, List):
                return None
            return found if isinstance(node.slice, ast.Slice) else found.item
        if not isinstance(node, ast.Attribute):
            return None
        if self.is_self(node.value):
            return self.fields.get(node.attr)
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
