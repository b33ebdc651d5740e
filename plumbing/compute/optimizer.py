"""AdamW with fp16's loss scale, new or as a checkpoint left it, and its learning rate."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from plumbing.base.processes import whole
from plumbing.run.progress import Checkpoint
from plumbing.checkpoint.tensors import locate_tensors, read_tensors

MOMENTS = ("exp_avg", "exp_avg_sq")


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Linear warm-up over the first share of the steps, then half a cosine to zero."""
    rise = max(1, math.ceil(warmup * steps))
    if step < rise:
        return peak * ((step + 1) / rise)
    fall = 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
    return peak * fall


class Optimizer:
    """The update of a model's trainable parameters. parameters: as model.named_parameters() gives
    them. Moments, scale and the number of updates are a checkpoint's, or those of the beginning;
    the moments are there before the first step, so that every checkpoint has them."""

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        weight_decay: float,
        dtype: str,
        device: str,
        checkpoint: Checkpoint | None = None,
    ):
        self.parameters = {name: p for name, p in parameters if p.requires_grad}
        cuda = device.startswith("cuda")
        weights = list(self.parameters.values())
        self.adamw = torch.optim.AdamW(weights, weight_decay=weight_decay, fused=cuda)
        self.scaler = torch.amp.GradScaler(device.split(":")[0], enabled=dtype == "fp16")
        self.moments = {
            f"{name}.{moment}": torch.zeros_like(parameter)
            for name, parameter in self.parameters.items()
            for moment in MOMENTS
        }
        updates = 0
        if checkpoint:
            places = locate_tensors(checkpoint.folder, "optimizer", self.moments)
            self.moments |= read_tensors(places, self.moments, None, device)
            updates, scale = checkpoint.state["updates"], checkpoint.state["scaler"]
            if scale:  # there is none where the run was not in fp16 so far
                self.scaler.load_state_dict(scale)
        for name, parameter in self.parameters.items():
            step = torch.tensor(float(updates), device=device if cuda else "cpu")
            state = {moment: self.moments[f"{name}.{moment}"] for moment in MOMENTS}
            self.adamw.state[parameter] = {"step": step} | state

    def set_rate(self, rate: float) -> None:
        self.adamw.param_groups[0]["lr"] = rate

    def scale(self, loss: Tensor) -> Tensor:
        """The loss to go backward from: in fp16 a multiple, so that small gradients survive."""
        return self.scaler.scale(loss)

    def clip(self, limit: float) -> float:
        """Clip the gradients of the true loss to a norm (0: any); returns what it was."""
        self.scaler.unscale_(self.adamw)
        parameters = self.parameters.values()
        return whole(nn.utils.clip_grad_norm_(parameters, limit or math.inf)).item()

    def rows_to_blame(self, losses: Tensor, norm: float) -> list[int]:
        """The rows of losses [rows, terms] that are not finite; all of them where the gradient is
        not, unless fp16's loss scale may be why. Empty: all is well."""
        rows = (~losses.isfinite().all(1)).nonzero().flatten().tolist()
        if not rows and not math.isfinite(norm) and self.scaler.get_scale() <= 1:
            rows = list(range(len(losses)))
        return rows

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
