"""The rules of tests/support/triton_lint.py over the whole package, and code that breaks each of them."""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path

import pytest

from tests.support.configs import modules
from tests.support.triton_lint import RULES

PACKAGE = Path(__file__).parents[2] / "fastrlhf"
# Launches take the current stream; copies between tiers have streams of their own.
OWNERS_OF_STREAMS = (PACKAGE / "device" / "launch.py", PACKAGE / "memory" / "copies.py")


@pytest.mark.parametrize("rule", RULES)
def test_the_package_keeps_the_rule(rule):
    found = [
        f"{path.relative_to(PACKAGE.parent)}:{fault.line}: {fault.text}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if not (path in OWNERS_OF_STREAMS and rule == "launch_elsewhere")
        for fault in RULES[rule](ast.parse(path.read_text()))
    ]
    assert not found, "\n".join(found)


def test_every_module_with_a_choice_chooses_from_its_table():
    for module in modules():
        if isinstance(getattr(module, "CONFIGS", None), list) or hasattr(module, "choose_config"):
            assert callable(module.choose_config) and module.CONFIGS, module.__name__


KERNEL = """
    import triton
    import triton.language as tl

    @triton.jit
    def scale_kernel(source, target, stride, columns, BLOCK: tl.constexpr):
        row = tl.program_id(0)
        at = tl.arange(0, BLOCK)
        {}
"""


def faults(rule, code):
    return [fault.text for fault in RULES[rule](ast.parse(textwrap.dedent(code)))]


def in_kernel(rule, line):
    return faults(rule, KERNEL.format(line))


BROKEN = {
    "dot_without_input_precision": ["x = tl.dot(a, b)", "x += tl.dot(a, b, acc=x)"],
    "masked_load_without_other": [
        "x = tl.load(source + at, mask=at < columns)",
        "x = tl.load(source + at, at < columns)",
    ],
    "autotune": ["f = triton.autotune(configs=[], key=[])(scale_kernel)"],
    "beyond_the_interpreter": [
        "x = tl.inline_asm_elementwise('', '', [], 1, True, 1)",
        "x = tl.extra.libdevice.exp(y)",
    ],
    "narrow_program_id": [
        "x = tl.load(source + row * stride + at)",
        "x = tl.load(source + stride * tl.program_id(1) + at)",
        "rows = row * BLOCK + at\n        x = tl.load(source + rows[:, None] * stride)",
        "other = tl.minimum(row, 3)\n        offset = other * stride",
        "first, other = 0, row % 2\n        offset = other * stride",
        "row += 1\n        offset = (row // 2) * stride",
    ],
    "launch_elsewhere": ["scale_kernel[(1,)](source)", "s = torch.cuda.current_stream()"],
    "address_of_a_temporary": [
        "x = source.contiguous().data_ptr()",
        "x = (source + 1).data_ptr()",
        "x = [t.data_ptr() for t in (source.contiguous(), target)]",
    ],
}
RIGHT = {
    "dot_without_input_precision": ["x = tl.dot(a, b, input_precision='ieee')", "x = numpy.dot(a, b)"],
    "masked_load_without_other": [
        "x = tl.load(source + at)",
        "x = tl.load(source + at, mask=at < columns, other=0.0)",
    ],
    "autotune": ["autotuned = 3"],
    "beyond_the_interpreter": ["x = tl.exp(y)"],
    "narrow_program_id": [
        "x = tl.load(source + row.to(tl.int64) * stride + at)",
        "row = row.to(tl.int64)\n        x = tl.load(source + row * stride + at)",
        "rows = (row * BLOCK + at).to(tl.int64)\n        x = tl.load(source + rows * stride)",
        "x = tl.load(source + row)",
        "start = tl.load(source)\n        rows = start + row * BLOCK + at\n        offset = rows * stride",
        "row = tl.load(source + row)\n        offset = row * stride",
        "x = tl.load(source + row * BLOCK + at, mask=row * BLOCK + at < columns, other=0.0)",
    ],
    "launch_elsewhere": ["launch_triton(scale_kernel, (1,), device, source)", "x = table[0]"],
    "address_of_a_temporary": ["x = source.data_ptr()", "x = [t.data_ptr() for t in (source, target)]"],
}


@pytest.mark.parametrize(("rule", "line"), [(rule, line) for rule, lines in BROKEN.items() for line in lines])
def test_what_breaks_a_rule_is_found(rule, line):
    assert in_kernel(rule, line)


@pytest.mark.parametrize(("rule", "line"), [(rule, line) for rule, lines in RIGHT.items() for line in lines])
def test_what_keeps_a_rule_passes(rule, line):
    assert in_kernel(rule, line) == []


@pytest.mark.parametrize(
    ("decorator", "parameter", "found"),
    [
        ("@triton.jit", "tokens", 1),
        ("@triton.jit(do_not_specialize=['rows'])", "tokens", 1),
        ("@triton.jit(do_not_specialize=['tokens'])", "tokens", 0),
        ("@triton.jit", "tokens: tl.constexpr", 0),
        ("@triton.jit", "hidden_size", 0),
    ],
)
def test_a_count_that_varies_is_not_specialised_on(decorator, parameter, found):
    kernel = f"{decorator}\ndef scale_kernel(source, {parameter}):\n    pass\n"
    assert (
        len(faults("specialised_count", kernel + "launch_triton(scale_kernel, (1,), device, x, 3)")) == found
    )
    assert faults("specialised_count", kernel) == [], "a helper that is not launched"


def test_a_pointer_is_no_count():
    kernel = "@triton.jit\ndef sample_kernel(tokens):\n    tl.store(tokens + at, 1)\n"
    assert faults("specialised_count", kernel + "launch_triton(sample_kernel, (1,), device, x)") == []
