"""What each Triton operation would launch on real shapes: one module an operation.

`LAUNCHES` maps a name such as "llama3-8b bf16" to a function without arguments that calls the operation's Triton
launcher on `device="meta"` tensors. The compile report runs it under `observing_triton`, which records the launches.
"""
