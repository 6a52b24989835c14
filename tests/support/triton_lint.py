"""Rules of the GPU code that a syntax tree shows. Each gives the lines that break it, with what to do instead."""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

# Parameters of kernels that change from call to call: specialised on, each new value of 1 or of a multiple of 16 would
# compile the kernel again in the middle of a run.
VARYING = {
    "batch",
    "count",
    "groups",
    "length",
    "max_seqlen",
    "programs",
    "rows",
    "seqlen",
    "sequences",
    "splits",
    "tokens",
}
_STREAMS = {"current_stream", "Stream", "cuda_stream", "set_stream", "ExternalStream"}
# Kinds of numbers: 32 bits computed of a program id, other 32 bits, and what may have 64.
_ID, _INT32, _UNKNOWN = "id", "int32", "unknown"
# Functions whose result is of the kind of their arguments.
_KEEPS_SIZE = {
    "minimum",
    "maximum",
    "min",
    "max",
    "where",
    "cdiv",
    "multiple_of",
    "max_contiguous",
    "broadcast_to",
}


class Fault(NamedTuple):
    """One place that breaks a rule."""

    line: int
    text: str


Rule = Callable[[ast.Module], Iterator[Fault]]


def dot_without_input_precision(tree: ast.Module) -> Iterator[Fault]:
    """Left to itself `tl.dot` takes float32 for TF32, which keeps ten bits of the mantissa."""
    for call in _calls(tree, "dot"):
        if _is_triton(call.func) and not _keyword(call, "input_precision"):
            yield Fault(call.lineno, 'tl.dot without input_precision: name it ("ieee" for float32)')


def masked_load_without_other(tree: ast.Module) -> Iterator[Fault]:
    """What a masked lane holds is undefined on a GPU, and zero in the interpreter."""
    for call in _calls(tree, "load"):
        masked = _keyword(call, "mask") or len(call.args) > 1
        if _is_triton(call.func) and masked and not (_keyword(call, "other") or len(call.args) > 2):
            yield Fault(call.lineno, "masked tl.load without other: say what the other lanes hold")


def autotune(tree: ast.Module) -> Iterator[Fault]:
    """Autotuning times kernels in the middle of a run, and gives other bits another day."""
    for node in ast.walk(tree):
        if (isinstance(node, ast.Attribute) and node.attr == "autotune") or (
            isinstance(node, ast.Name) and node.id == "autotune"
        ):
            yield Fault(node.lineno, "autotune: choose from a table, CONFIGS")


def beyond_the_interpreter(tree: ast.Module) -> Iterator[Fault]:
    """Code that no test can run without a GPU."""
    for node in ast.walk(tree):
        name = (
            node.attr if isinstance(node, ast.Attribute) else node.name if isinstance(node, ast.alias) else ""
        )
        if "libdevice" in name or "inline_asm" in name or name == "extern_elementwise":
            yield Fault(node.lineno, f"{name}: the interpreter cannot run it")


def narrow_program_id(tree: ast.Module) -> Iterator[Fault]:
    """A program id is an int32: times a stride, it or the row that it leads to wraps past 2^31 elements."""
    for function in _kernels_and_helpers(tree):
        yield from _NarrowIds(function).faults()


def launch_elsewhere(tree: ast.Module) -> Iterator[Fault]:
    """Streams, device guards and launch errors have one place."""
    uses_triton = any("triton" in name for name in _imported(tree))
    for node in ast.walk(tree):
        if uses_triton and isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
            yield Fault(node.lineno, "kernel[grid](...): call launch_triton of fastrlhf/device/launch.py")
        if isinstance(node, ast.Attribute) and node.attr in _STREAMS:
            yield Fault(node.lineno, f"{node.attr}: streams are taken in fastrlhf/device/launch.py")


def address_of_a_temporary(tree: ast.Module) -> Iterator[Fault]:
    """A tensor without a name is freed before its address is used."""
    for call in _calls(tree, "data_ptr"):
        if isinstance(call.func, ast.Attribute) and _makes_a_tensor(call.func.value):
            yield Fault(
                call.lineno, "data_ptr() of a temporary: give the tensor a name that outlives the launch"
            )
    for node in ast.walk(tree):
        if isinstance(node, (ast.ListComp, ast.GeneratorExp, ast.SetComp)):
            takes = any(_calls(node.elt, "data_ptr"))
            for loop in node.generators:
                items = loop.iter.elts if isinstance(loop.iter, (ast.Tuple, ast.List)) else []
                if takes and any(_makes_a_tensor(item) for item in items):
                    yield Fault(
                        node.lineno,
                        "data_ptr() of a temporary: the list of tensors ends with the comprehension",
                    )


def specialised_count(tree: ast.Module) -> Iterator[Fault]:
    """A launched kernel's parameters of the names in `VARYING` stand in do_not_specialize."""
    launched = {ast.unparse(call.args[0]) for call in _calls(tree, "launch_triton") if call.args}
    for function in _kernels_and_helpers(tree):
        if function.name not in launched:
            continue
        named = {
            constant.value
            for decorator in function.decorator_list
            for keyword in getattr(decorator, "keywords", [])
            if keyword.arg == "do_not_specialize"
            for constant in ast.walk(keyword.value)
            if isinstance(constant, ast.Constant)
        }
        pointers = {_base(call.args[0]) for name in ("load", "store") for call in _calls(function, name)}
        for argument in function.args.args:
            if argument.annotation is None and argument.arg in VARYING - named - pointers:
                yield Fault(
                    function.lineno, f"{function.name}: {argument.arg} varies: put it into do_not_specialize"
                )


RULES: dict[str, Rule] = {
    rule.__name__: rule
    for rule in (
        dot_without_input_precision,
        masked_load_without_other,
        autotune,
        beyond_the_interpreter,
        narrow_program_id,
        launch_elsewhere,
        address_of_a_temporary,
        specialised_count,
    )
}


class _NarrowIds:
    """Follows program ids through one function, until they are cast to int64 or meet a number that may be one."""

    def __init__(self, function: ast.FunctionDef) -> None:
        arguments = (*function.args.args, *function.args.kwonlyargs)
        self.function = function
        self.constexprs = {
            argument.arg
            for argument in arguments
            if argument.annotation is not None and "constexpr" in ast.unparse(argument.annotation)
        }
        self.kinds = {argument.arg: _INT32 for argument in arguments}

    def faults(self) -> Iterator[Fault]:
        for node in _in_order(self.function):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
                factors = [side for side in (node.left, node.right) if not self._is_constant(side)]
                if len(factors) == 2 and self._kind(node) == _ID:
                    yield Fault(node.lineno, f"{ast.unparse(node)}: cast the program id to tl.int64 first")
            if isinstance(node, (ast.Assign, ast.AugAssign)):
                for name, value in _assigned(node):
                    kind = self._kind(value)
                    if isinstance(node, ast.AugAssign):
                        kind = self._of_both(self.kinds.get(name, _UNKNOWN), kind)
                    self.kinds[name] = kind

    def _kind(self, node: ast.expr) -> str:
        """Of what width and origin the value of an expression is."""
        match node:
            case ast.Constant():
                return _INT32
            case ast.Name():
                return self.kinds.get(node.id, _INT32 if node.id.isupper() else _UNKNOWN)
            case ast.Subscript():
                return self._kind(node.value)
            case ast.BinOp():
                return self._of_both(self._kind(node.left), self._kind(node.right))
            case ast.Call() if _called(node) == "program_id":
                return _ID
            case ast.Call() if _called(node) in ("arange", "num_programs"):
                return _INT32
            case ast.Call() if _called(node) in _KEEPS_SIZE:
                return functools.reduce(self._of_both, map(self._kind, node.args))
        return _UNKNOWN

    @staticmethod
    def _of_both(one: str, other: str) -> str:
        kinds = {one, other}
        return _UNKNOWN if _UNKNOWN in kinds else _ID if _ID in kinds else _INT32

    def _is_constant(self, node: ast.expr) -> bool:
        names = [part.id for part in ast.walk(node) if isinstance(part, ast.Name) and part.id != "tl"]
        calls = any(isinstance(part, ast.Call) for part in ast.walk(node))
        return not calls and all(name in self.constexprs or name.isupper() for name in names)


def _in_order(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """The nodes of a function as they are executed, each after those inside of it, a loop's body once."""
    for child in ast.iter_child_nodes(function):
        yield from _in_order(child)
    yield function


def _assigned(node: ast.Assign | ast.AugAssign) -> Iterator[tuple[str, ast.expr]]:
    """Each name that a statement assigns to, with the expression whose value it gets."""
    for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
        parts = target.elts if isinstance(target, ast.Tuple) else [target]
        values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value] * len(parts)
        for part, value in zip(parts, values, strict=True):
            if isinstance(part, ast.Name):
                yield part.id, value


def _kernels_and_helpers(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and any("jit" in ast.unparse(d) for d in node.decorator_list):
            yield node


def _base(address: ast.expr) -> str:
    """The name that an address begins with."""
    while isinstance(address, ast.BinOp):
        address = address.left
    return getattr(address, "id", "")


def _calls(tree: ast.AST, name: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _called(node) == name:
            yield node


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _is_triton(function: ast.expr) -> bool:
    return isinstance(function, ast.Attribute) and ast.unparse(function.value) in ("tl", "triton.language")


def _keyword(call: ast.Call, name: str) -> bool:
    return any(keyword.arg == name for keyword in call.keywords)


def _makes_a_tensor(node: ast.expr) -> bool:
    return isinstance(node, (ast.Call, ast.BinOp, ast.UnaryOp))


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
