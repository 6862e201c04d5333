"""The optimizer of a LoRA bank: torch's formulas, and slots of which each counts its own steps or rests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .adapters import confirm_cleared

if TYPE_CHECKING:
    from .lora_bank import LoraBank


class BankOptimizer(Optimizer):
    """SGD, Adam or AdamW of torch's formulas, with a step counter, a rate and a decay of each slot's own.

    A slot moves where the bank's `active` says so and the guard's flag is down; else nothing of it changes, its
    moments and its counter included. A rate or a decay is a number, a 0-d tensor or a tensor `(slots,)`.
    """

    def __init__(self, bank: LoraBank, kind: str, groups: Sequence[Mapping[str, Any]], **settings: Any) -> None:
        super().__init__([dict(group) for group in groups], {"lr": 0.0, **settings})
        self.bank, self.kind = bank, kind
        self.found_inf: Tensor | None = None
        self.grad_scale: Tensor | None = None

    @torch.no_grad()
    def direction(self) -> dict[str, list[Tensor]]:
        """Return what the update would subtract per unit rate, by group, zero for a slot at rest; nothing changes."""
        moves, found = self._moves(), dict[str, list[Tensor]]()
        for group in self.param_groups:
            rows = found.setdefault(group["name"], [])
            for p in group["params"]:
                if p.grad is not None:
                    step, decay, _ = self._rule(p, self._held(p, group), group)
                    whole = step + _wide(decay, p) * p if _given(decay) else step
                    rows.append(whole if moves is None else torch.where(_wide(moves), whole, 0.0))
        return found

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        moves = self._moves()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                held = self._held(p, group)
                step, decay, state = self._rule(p, held, group)
                rate = _wide(group["lr"], p)
                kept = p * (1 - rate * _wide(decay, p)) if _given(decay) else p
                new = kept - step * rate if isinstance(rate, Tensor) else torch.sub(kept, step, alpha=rate)
                for old, value in [(p, new), *((held[name], value) for name, value in state.items())]:
                    if moves is None:
                        old.copy_(value)
                    else:  # chosen, not scaled by 0: what the guard flagged may be NaN
                        torch.where(moves if old.dim() == 1 else _wide(moves), value, old, out=old)
                self.state[p] = held

    @torch.no_grad()
    def clip(self, max_norm: float) -> Tensor:
        """Scale each slot's gradient down to a norm of `max_norm` at most; return the norm before, over all slots.

        One norm over all of them would let what one document holds decide how far another is moved.
        """
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms = torch.stack([torch.linalg.vector_norm(grad, dim=(0, 2, 3)) for grad in grads]).norm(dim=0)
        share = _wide((max_norm / (norms + 1e-6)).clamp(max=1.0))
        for grad in grads:
            grad.mul_(share)
        whole: Tensor = norms.norm()
        return whole

    def _moves(self) -> Tensor | None:
        active = self.bank.active
        if self.found_inf is None:
            return active
        up = self.found_inf == 0
        return up.expand(self.bank.slots) if active is None else active & up

    def _held(self, p: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return counters and moments as they are, or zero where there are none yet, which is kept nowhere."""
        if self.kind == "sgd":
            names = ["momentum_buffer"] if group["momentum"] else []
        else:  # where nothing of it is kept the first moment is the gradient itself
            names = ["exp_avg", "exp_avg_sq"] if group["betas"][0] else ["exp_avg_sq"]
        known = self.state.get(p, {})
        held = {"step": known["step"] if "step" in known else torch.zeros(self.bank.slots, device=p.device)}
        return held | {name: known[name] if name in known else torch.zeros_like(p) for name in names}

    def _rule(self, p: Tensor, held: Mapping[str, Tensor], group: Any) -> tuple[Tensor, Any, dict[str, Tensor]]:
        """Return the direction, the decoupled decay, and the counters and moments that follow `held`."""
        grad, wd, state = p.grad, group["weight_decay"], {"step": held["step"] + 1}
        assert grad is not None
        if self.kind != "adamw" and _given(wd):
            grad = grad + _wide(wd, p) * p
        if self.kind == "sgd":
            momentum = group["momentum"]
            if not momentum:
                return grad.clone(), 0.0, state
            buffer = (held["momentum_buffer"] * momentum).add_(grad, alpha=1 - group["dampening"])
            # as torch does it: the first gradient enters the buffer whole, whatever the dampening
            state["momentum_buffer"] = buffer = torch.where(_wide(state["step"] == 1), grad, buffer)
            return grad.add(buffer, alpha=momentum) if group["nesterov"] else buffer, 0.0, state
        (b1, b2), count, first = group["betas"], state["step"].to(p.dtype), grad
        if b1:
            state["exp_avg"] = held["exp_avg"].lerp(grad, 1 - b1)
            first = state["exp_avg"] / _wide(_weight(b1, count))
        state["exp_avg_sq"] = (held["exp_avg_sq"] * b2).addcmul_(grad, grad, value=1 - b2)
        root = state["exp_avg_sq"].sqrt().div_(_wide(_weight(b2, count).sqrt()))
        return first / root.add_(group["eps"]), wd if self.kind == "adamw" else 0.0, state

    def forget(self, slots: Tensor, factors: frozenset[str]) -> None:
        """Clear moments and counters of some slots, of the factors named `a` or `b`."""
        side = {id(p): "a" for p in self.bank.lora_A.values()} | {id(p): "b" for p in self.bank.lora_B.values()}
        for p, state in self.state.items():
            if side[id(p)] in factors:
                dims = {name: 0 if value.dim() == 1 else 1 for name, value in state.items()}
                for name, value in state.items():
                    value.index_fill_(dims[name], slots, 0.0)
                rest = {name: value.index_select(dims[name], slots) for name, value in state.items()}
                confirm_cleared(f"{side[id(p)].upper()} in the bank", rest)


def _weight(beta: float, count: Tensor) -> Tensor:
    """Return 1 - beta^count, all that a moment has of its gradients; as a power it would be right to four digits."""
    return -torch.expm1(count * (math.log(beta) if beta else -math.inf))


def _given(decay: Any) -> bool:
    return isinstance(decay, Tensor) or decay != 0


def _wide(value: Any, like: Tensor | None = None) -> Any:
    """Return a number as it is, and one a slot so that it lies along the slots of a stack."""
    if not isinstance(value, Tensor) or not value.dim():
        return value
    return (value if like is None else value.to(like.dtype)).view(1, -1, 1, 1)
