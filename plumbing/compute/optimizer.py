"""AdamW with fp16's loss scale, and its learning rate."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from plumbing.base.processes import whole

MOMENTS = ("exp_avg", "exp_avg_sq")


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """The rate of a step (from 0): a linear warm-up over the share `warmup` of the steps, then half
    a cosine from the peak to zero."""
    rise = max(1, math.ceil(warmup * steps))
    if step < rise:
        return peak * ((step + 1) / rise)
    fall = 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
    return peak * fall


class Optimizer:
    """The update of a model's trainable parameters. parameters: as model.named_parameters() gives
    them. moments: {"NAME.exp_avg", "NAME.exp_avg_sq": tensors}, there before the first step so that
    every checkpoint has them."""

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], dtype: str, device: str):
        self.parameters = {name: p for name, p in parameters if p.requires_grad}
        self.device, cuda = device, device.startswith("cuda")
        weights = list(self.parameters.values())
        self.adamw = torch.optim.AdamW(weights, weight_decay=0.0, fused=cuda)
        self.scaler = torch.amp.GradScaler(device.split(":")[0], enabled=dtype == "fp16")
        self.moments = {
            f"{name}.{moment}": torch.zeros_like(parameter)
            for name, parameter in self.parameters.items()
            for moment in MOMENTS
        }
        self.set_state(updates=0)

    def set_state(self, updates: int, moments: dict | None = None, scaler: dict | None = None):
        """Go on after so many updates, with a checkpoint's moments and fp16 scale."""
        self.moments |= moments or {}
        if scaler:  # empty where the run was not in fp16 so far
            self.scaler.load_state_dict(scaler)
        device = self.device if self.device.startswith("cuda") else "cpu"
        for name, parameter in self.parameters.items():
            step = torch.tensor(float(updates), device=device)
            state = {moment: self.moments[f"{name}.{moment}"] for moment in MOMENTS}
            self.adamw.state[parameter] = {"step": step} | state

    def set_rate(self, rate: float) -> None:
        self.adamw.param_groups[0]["lr"] = rate

    def scale(self, loss: Tensor) -> Tensor:
        """The loss to go backward from: in fp16 a multiple, so that small gradients survive."""
        return self.scaler.scale(loss)

    def clip(self, limit: float) -> float:
        """Clip the gradients of the true loss to a norm; returns what it was."""
        self.scaler.unscale_(self.adamw)
        return whole(nn.utils.clip_grad_norm_(self.parameters.values(), limit)).item()

    def may_be_scale(self) -> bool:
        """Whether a gradient that is not finite may come from fp16's loss scale alone."""
        return self.scaler.get_scale() > 1

    def step(self) -> bool:
        """Update the parameters and forget the gradients; False where fp16 skipped the update."""
        before = self.scaler.get_scale()
        self.scaler.step(self.adamw)
        self.scaler.update()
        self.adamw.zero_grad(set_to_none=True)
        return self.scaler.get_scale() >= before

    def is_finite(self) -> bool:
        """Whether all parameters and moments are; every process must call this."""
        tensors = [*self.parameters.values(), *self.moments.values()]
        return all(whole(tensor.detach().isfinite().all()) for tensor in tensors)
