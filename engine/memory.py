"""When memory runs out: what was being computed, and which settings make it smaller."""

from __future__ import annotations

from typing import Any

import torch

from .text import printable

SIGNS = ("DefaultCPUAllocator", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "failed to allocate")


def exhausted(error: BaseException | None) -> bool:
    """Say whether an error, or the one behind a plugin's, is that memory ran out."""
    if error is None:
        return False
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    told = isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)
    return known or told or exhausted(error.__cause__)


def account(error: BaseException, kernel: Any | None) -> str:
    """Return where memory ran out, with the shape of the batch, and what to lower; `kernel` is None before training."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    said = printable(first, 300)
    if kernel is None:
        text = "take a smaller model, another train.device, or bfloat16 for weights that are frozen"
        return f"out of memory while the run was made ready: {said}; {text}"
    at = kernel.position
    plan = kernel.plans[min(at.phase, len(kernel.plans) - 1)]
    where = f"phase {plan.phase.name}, epoch {at.epoch}"
    if at.stage != "train":
        return f"out of memory while evaluating at {where}: {said}; {_advice(plan, 'evaluate')}"
    accum = kernel.asked_accum or plan.train.grad_accum
    micro = f"micro-batch {at.micro}" + (f" to {at.micro + accum - 1}" if accum > 1 else "")
    return f"out of memory at {where}, {micro}{_shape(plan, at, accum)}: {said}; {_advice(plan, 'train')}"


def _shape(plan: Any, at: Any, accum: int) -> str:
    """Return the largest shapes among the micro-batches of the update, which may not be had for want of memory."""
    found: dict[str, tuple[int, ...]] = {}
    try:
        for index in range(at.micro, min(at.micro + accum, plan.task.batches(at.epoch))):
            for name, tensor in plan.task.batch(at.epoch, index).tensors.items():
                if tensor.dim() > 1 and tensor.numel() > torch.Size(found.get(name, (0,))).numel():
                    found[name] = tuple(tensor.shape)
    except Exception:
        pass  # the error to tell is the first one
    shown = ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in found.items())
    return f" ({shown})" if shown else ""


def _advice(plan: Any, doing: str) -> str:
    own = [f"the task's {name}" for name in getattr(plan.task, "costly", {}).get(doing, ())]
    if doing == "evaluate":
        return f"lower {' or '.join(own)}" if own else "take a smaller model or smaller items"
    train, accum = plan.train, plan.train.grad_accum
    ways = [f"a train.micro_batch below {train.micro_batch} (with a train.grad_accum above {accum}, for equal updates)"]
    ways += [] if plan.phase.checkpointing else ["train.gradient_checkpointing: true"]
    ways += [] if plan.phase.bf16 else ["train.precision: bf16"]
    ways += [f"a lower value of {name}" for name in own]
    return f"set {', '.join(ways[:-1])}{' or ' if len(ways) > 1 else ''}{ways[-1]}"
