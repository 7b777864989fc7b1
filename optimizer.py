"""The optimizer and its schedule: SGD or Muon, and OneCycleLR."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from config import Config

PCT_START = 0.2  # share of the schedule before the peak
FINAL_DIV_FACTOR = 100.0  # learning rate at the start / learning rate at the end
# SGD's momentum: the highest is at the start and the end of the schedule, the lowest at its peak.
BASE_MOMENTUM, MAX_MOMENTUM = 0.85, 0.95

MUON_LR = 0.1  # Muon's learning rate at the peak of the schedule
MUON_MOMENTUM = 0.95
MUON_STEPS = 5
COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of a Newton-Schulz step's polynomial, chosen by Jordan et al.


def make_optimizer(model: nn.Module, config: Config, total_steps: int) -> tuple[Optimizer, OneCycleLR]:
    """Make the optimizer and its schedule over ``total_steps`` steps.

    The learning rate begins at ``config.lr / config.div_factor``, and its peak is ``config.lr``. With Muon,
    the learning rate of the convolutions' weights follows the same curve, scaled to the peak ``MUON_LR``.
    """
    make = Muon if config.opt == "muon" else SGD
    optimizer = make(
        model.parameters(),
        lr=config.lr,
        momentum=MAX_MOMENTUM,
        weight_decay=config.weight_decay,
        fused=next(model.parameters()).device.type in ("cpu", "cuda"),
    )
    num_groups = len(optimizer.param_groups)  # SGD has one. Muon has a second: that of the lists below
    steps = max(total_steps, 3)  # with 2, OneCycleLR divides by zero after the second
    scheduler = OneCycleLR(
        optimizer,
        max_lr=[config.lr, MUON_LR][:num_groups],
        total_steps=steps,
        # With a warm-up of less than two steps, OneCycleLR skips the peak, starts after it, or divides by 0.
        pct_start=max(PCT_START, 2 / steps),
        div_factor=config.div_factor,
        final_div_factor=FINAL_DIV_FACTOR,
        # OneCycleLR sets each group's momentum. Muon's group keeps 0, as Muon has its own, constant one.
        base_momentum=[BASE_MOMENTUM, 0.0][:num_groups],
        max_momentum=[MAX_MOMENTUM, 0.0][:num_groups],
    )
    return optimizer, scheduler


class Muon(SGD):
    """SGD that orthogonalises the momentum of each weight matrix (Jordan et al., 2024).

    Weights of convolutions and linear layers are trained by Muon, all other parameters by SGD with momentum.
    A weight (outputs, inputs, k, k) is the matrix (outputs, inputs·k·k). Matrices have the peak learning rate
    ``MUON_LR``, Nesterov momentum ``MUON_MOMENTUM`` and no weight decay.
    """

    def __init__(self, params: Iterable[nn.Parameter], **options: Any) -> None:
        parameters = list(params)
        matrices = [parameter for parameter in parameters if parameter.ndim > 1]
        by_muon: dict[str, Any] = {"params": matrices, "lr": MUON_LR, "momentum": 0.0, "weight_decay": 0.0}
        super().__init__([{"params": [p for p in parameters if p.ndim <= 1]}, by_muon], **options)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Replace each matrix's gradient by its orthogonalised momentum. Then SGD takes its step."""
        matrices = [matrix for matrix in self.param_groups[1]["params"] if matrix.grad is not None]
        if matrices:
            grads: list[Any] = [matrix.grad for matrix in matrices]
            states = [self.state[matrix] for matrix in matrices]
            for grad, state in zip(grads, states, strict=True):
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(grad)
            buffers = [state["momentum_buffer"] for state in states]
            torch._foreach_lerp_(buffers, grads, 1 - MUON_MOMENTUM)
            nesterov = torch._foreach_lerp(grads, buffers, MUON_MOMENTUM)
            torch._foreach_copy_(grads, orthogonalize(nesterov))
        super().step()


def orthogonalize(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Bring the singular values of each matrix close to 1 by Newton-Schulz steps.

    The matrices are (rows, ...), float32, of any sizes; all dimensions but the first count as columns.
    Singular values above 1 % of a matrix's norm come into the range 0.68 to 1.14. A matrix of more rows than
    columns is then multiplied by (rows / columns)^½, as Jordan et al. do.
    """
    flat = [matrix.flatten(start_dim=1) for matrix in matrices]
    wide = [matrix.T if matrix.shape[0] > matrix.shape[1] else matrix for matrix in flat]
    rows, columns = (max(matrix.shape[dim] for matrix in wide) for dim in (0, 1))
    # One batch is faster than a loop. Zero padding doesn't change the result.
    batch = torch.stack([F.pad(m, (0, columns - m.shape[1], 0, rows - m.shape[0])) for m in wide])
    batch /= batch.norm(dim=(1, 2), keepdim=True).clamp_(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(MUON_STEPS):  # X ← aX + b(XXᵀ)X + c(XXᵀ)²X
        gram = torch.bmm(batch, batch.mT)
        batch = torch.baddbmm(batch, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), batch, beta=a)
    results = []
    for padded, matrix in zip(batch, matrices, strict=True):
        height, width = len(matrix), matrix[0].numel()
        if height > width:
            padded = padded.T * (height / width) ** 0.5
        results.append(padded[:height, :width].reshape(matrix.shape))
    return results
