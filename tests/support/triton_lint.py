"""Rules of the GPU code that a syntax tree shows. Each gives the lines that break it, with what to do instead."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from typing import NamedTuple

# Parameters of kernels that change from call to call: specialised on, each new value of 1 or of a multiple of 16 would
# compile the kernel again in the middle of a run.
VARYING = {
    "batch",
    "blocks",
    "count",
    "length",
    "max_seqlen",
    "programs",
    "rows",
    "seqlen",
    "sequences",
    "tokens",
    "total",
}
_STREAMS = {"current_stream", "Stream", "cuda_stream", "set_stream", "ExternalStream"}
# Functions whose result is of the size of their arguments.
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
    """A program id is an int32: times a stride, or a block's size, it wraps past 2^31 elements."""
    for function in _kernels_and_helpers(tree):
        constexprs = {
            argument.arg
            for argument in (*function.args.args, *function.args.kwonlyargs)
            if argument.annotation is not None and "constexpr" in ast.unparse(argument.annotation)
        }
        yield from _NarrowIds(constexprs).faults(function)


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
        for argument in function.args.args:
            if argument.annotation is None and argument.arg in VARYING - named:
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
    """Follows program ids through one function, until they are cast to int64."""

    def __init__(self, constexprs: set[str]) -> None:
        self.constexprs = constexprs
        self.ids: set[str] = set()  # names that hold a program id as it came
        self.products: set[str] = set()  # names that hold one times a block's size

    def faults(self, function: ast.FunctionDef) -> Iterator[Fault]:
        for node in _in_order(function):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
                for narrow, factor in ((node.left, node.right), (node.right, node.left)):
                    if self._is_id(narrow) and not self._is_constant(factor):
                        yield Fault(
                            node.lineno, f"{ast.unparse(node)}: cast the program id to tl.int64 first"
                        )
                        break
            if isinstance(node, ast.Call) and _called(node) in ("load", "store"):
                yield from (
                    Fault(
                        node.lineno, f"address {ast.unparse(address)}: cast the program id to tl.int64 first"
                    )
                    for address in node.args[:1]
                    if self._is_product(address)
                )
            if isinstance(node, (ast.Assign, ast.AugAssign)):
                for name in _names(node):
                    self._follow(name, node)

    def _follow(self, name: str, node: ast.Assign | ast.AugAssign) -> None:
        keeps = isinstance(node, ast.AugAssign)
        for names, holds in (
            (self.ids, self._is_id(node.value)),
            (self.products, self._is_product(node.value)),
        ):
            if holds:
                names.add(name)
            elif not keeps:
                names.discard(name)

    def _is_id(self, node: ast.expr) -> bool:
        """Whether the value is computed of a program id that is still an int32."""
        return any(
            (isinstance(part, ast.Name) and part.id in self.ids)
            or (isinstance(part, ast.Call) and _called(part) == "program_id")
            for part in _same_size(node)
        )

    def _is_product(self, node: ast.expr) -> bool:
        return any(
            (isinstance(part, ast.Name) and part.id in self.products)
            or (isinstance(part, ast.BinOp) and isinstance(part.op, ast.Mult) and self._is_id(part))
            for part in _same_size(node)
        )

    def _is_constant(self, node: ast.expr) -> bool:
        return all(
            part.id in self.constexprs or part.id.isupper()
            for part in ast.walk(node)
            if isinstance(part, ast.Name)
        )


def _same_size(node: ast.expr) -> Iterator[ast.expr]:
    """The parts of an expression of whose width its value is: not beyond a cast, a load or a comparison."""
    yield node
    if isinstance(node, ast.BinOp):
        yield from _same_size(node.left)
        yield from _same_size(node.right)
    elif isinstance(node, ast.Subscript):
        yield from _same_size(node.value)
    elif isinstance(node, ast.IfExp):
        yield from _same_size(node.body)
        yield from _same_size(node.orelse)
    elif isinstance(node, ast.Call) and _called(node) in _KEEPS_SIZE:
        for argument in node.args:
            yield from _same_size(argument)


def _in_order(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """The nodes of a function as they are executed, each after those inside of it, a loop's body once."""
    for child in ast.iter_child_nodes(function):
        yield from _in_order(child)
    yield function


def _names(node: ast.Assign | ast.AugAssign) -> Iterator[str]:
    for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
        yield from (part.id for part in ast.walk(target) if isinstance(part, ast.Name))


def _kernels_and_helpers(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and any("jit" in ast.unparse(d) for d in node.decorator_list):
            yield node


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
