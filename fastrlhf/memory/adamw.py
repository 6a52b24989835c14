"""AdamW as a PyTorch optimizer whose step clips the gradients in the pass that uses them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch

from fastrlhf.kernels import adamw_each

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
_WIDE = ("master", "exp_avg", "exp_avg_sq")


class AdamW(torch.optim.Optimizer):
    """`torch.optim.AdamW` on the operation `fastrlhf.kernels.adamw`: one pass over gradients, state and weights.

    Its state is that of PyTorch's, which loads into it and the other way round. Weights in bfloat16 have a float32
    master in the state (`master`), and moments in float32.

    Args:
        params: parameters, or groups of them, in float32, float64 or bfloat16.
        lr, betas, eps, weight_decay: as PyTorch's, each may differ from group to group.

    Raises:
        ValueError, TypeError: numbers out of range (at the first step), or another dtype.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ):
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay})
        for parameter in self._parameters():
            if parameter.dtype not in DTYPES:
                raise TypeError(
                    f"a parameter has dtype {parameter.dtype}, expected float32, float64 or bfloat16"
                )

    @torch.no_grad()
    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        grad_norm: torch.Tensor | None = None,
        max_norm: float | None = None,
    ) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: computes the loss and its gradients again.
            grad_norm: norm of all gradients, a scalar on their device; if it is not finite, nothing changes but the
                count of steps, which no host waits for.
            max_norm: bound of the norm. The gradients themselves stay as they are.

        Returns:
            What `closure` returns.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            options = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}
            for (step, *_), parameters in self._by_step(group["params"]).items():
                _update(
                    parameters,
                    [self.state[parameter] for parameter in parameters],
                    step=step,
                    grad_norm=grad_norm,
                    max_norm=max_norm,
                    **options,
                )
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As every optimizer's; of bfloat16 weights, what is kept in float32 stays in it."""
        super().load_state_dict(state_dict)
        ids = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        for number, parameter in zip(ids, self._parameters(), strict=True):
            saved = state_dict["state"].get(number, {})
            if saved:
                moments = {
                    name: self.state[parameter][name].contiguous() for name in ("exp_avg", "exp_avg_sq")
                }
                self.state[parameter].update(moments)
            if parameter.dtype == torch.bfloat16 and saved:
                wide = {name: saved[name] for name in _WIDE if name in saved}
                wide.setdefault("master", parameter.detach())
                kept = {
                    name: value.to(parameter.device, torch.float32, copy=True).contiguous()
                    for name, value in wide.items()
                }
                self.state[parameter].update(kept)

    def _parameters(self) -> Iterable[torch.nn.Parameter]:
        return chain.from_iterable(group["params"] for group in self.param_groups)

    def _by_step(self, parameters: list[torch.nn.Parameter]) -> dict[tuple, list[torch.nn.Parameter]]:
        """Those with a gradient, counted one step on, by which step it is, device and dtype."""
        found: dict[tuple, list[torch.nn.Parameter]] = {}
        for parameter in parameters:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state.update(_fresh_state(parameter))
            state["step"] += 1
            key = (int(state["step"]), parameter.device, parameter.dtype)
            found.setdefault(key, []).append(parameter)
        return found


def _fresh_state(parameter: torch.nn.Parameter) -> dict[str, torch.Tensor]:
    """The step is on the host, as PyTorch has it: counting does not make it wait."""
    wide = parameter.detach()
    state = {"step": torch.zeros(())}
    if parameter.dtype == torch.bfloat16:
        wide = state["master"] = wide.float().contiguous()
    for name in ("exp_avg", "exp_avg_sq"):
        state[name] = torch.zeros_like(wide, memory_format=torch.contiguous_format)
    return state


def _update(parameters: list[torch.nn.Parameter], states: list[dict[str, torch.Tensor]], **options) -> None:
    """One step of tensors of one device and dtype; a weight that is not contiguous goes through a copy that is."""
    weights = [parameter.detach() for parameter in parameters]
    flat = [weight.contiguous() for weight in weights]
    narrow = weights[0].dtype == torch.bfloat16
    adamw_each(
        [state["master"] for state in states] if narrow else flat,
        [parameter.grad.contiguous() for parameter in parameters],
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        bfloat16_copies=flat if narrow else None,
        **options,
    )
    for weight, copied in zip(weights, flat, strict=True):
        if not weight.is_contiguous():
            weight.copy_(copied)
