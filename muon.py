"""Muon (Jordan et al., 2024): SGD that orthogonalises the momentum of each weight matrix."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.sgd import sgd

MOMENTUM = 0.95  # of the matrices
STEPS = 5
COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of a Newton-Schulz step's polynomial, chosen by Jordan et al.


class Muon(Optimizer):
    """Train the weights of convolutions and linear layers by Muon, all other parameters by SGD with momentum.

    A weight (outputs, inputs, k, k) is the matrix (outputs, inputs·k·k). Matrices have the learning rate
    ``muon_lr``, Nesterov momentum ``MOMENTUM`` and no weight decay. The other arguments are for SGD.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: float,
        muon_lr: float,
        momentum: float,
        weight_decay: float,
    ) -> None:
        matrices = {"params": [], "lr": muon_lr, "momentum": MOMENTUM, "weight_decay": 0.0}
        groups: list[dict[str, Any]] = [{"params": []}, matrices]
        for parameter in params:
            groups[parameter.ndim > 1]["params"].append(parameter)
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step; return the loss, if there is a ``closure`` to compute it."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        others, matrices = self.param_groups
        params, grads, buffers = self.tensors(others)
        if params:
            sgd(
                params,
                grads,
                buffers,
                fused=params[0].device.type in ("cpu", "cuda"),
                weight_decay=others["weight_decay"],
                momentum=others["momentum"],
                lr=others["lr"],
                dampening=0,
                nesterov=False,
                maximize=False,
            )
        params, grads, buffers = self.tensors(matrices)
        if params:
            torch._foreach_lerp_(buffers, grads, 1 - matrices["momentum"])
            updates = orthogonalize(torch._foreach_lerp(grads, buffers, matrices["momentum"]))  # Nesterov's
            torch._foreach_add_(params, updates, alpha=-matrices["lr"])
        return loss

    def tensors(self, group: dict[str, Any]) -> tuple[list[Tensor], list[Tensor], list[Any]]:
        """Return the parameters of ``group`` that have gradients, these gradients and the momentum."""
        params = [parameter for parameter in group["params"] if parameter.grad is not None]
        states = [self.state[parameter] for parameter in params]
        for parameter, state in zip(params, states, strict=True):
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
        return params, [p.grad for p in params], [state["momentum_buffer"] for state in states]


def orthogonalize(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Bring the singular values of each matrix close to 1 by Newton-Schulz steps.

    The matrices are (rows, ...), float32, of any sizes; all dimensions but the first count as columns.
    Singular values above 1 % of a matrix's norm come into the range 0.68 to 1.14. As in Muon, a matrix of
    more rows than columns is then multiplied by (rows / columns)^½.
    """
    flat = [matrix.flatten(start_dim=1) for matrix in matrices]
    wide = [matrix.T if matrix.shape[0] > matrix.shape[1] else matrix for matrix in flat]
    rows, columns = (max(matrix.shape[dim] for matrix in wide) for dim in (0, 1))
    # One batch is faster than a loop. Zero padding doesn't change the result.
    batch = torch.stack([F.pad(m, (0, columns - m.shape[1], 0, rows - m.shape[0])) for m in wide])
    batch /= batch.norm(dim=(1, 2), keepdim=True).clamp_(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):  # X ← aX + b(XXᵀ)X + c(XXᵀ)²X
        gram = torch.bmm(batch, batch.mT)
        batch = torch.baddbmm(batch, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), batch, beta=a)
    results = []
    for padded, matrix in zip(batch, matrices, strict=True):
        height, width = len(matrix), matrix[0].numel()
        if height > width:
            padded = padded.T * (height / width) ** 0.5
        results.append(padded[:height, :width].reshape(matrix.shape))
    return results
