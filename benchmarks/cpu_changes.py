"""Measure each change to the CPU's training step against the one before it, on this machine.

    python benchmarks/cpu_changes.py

A step is 128 random images forward, backward and through the optimiser. Each variant runs in a process
of its own, and they take turns.
"""

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.pipeline import serve, take_turns  # noqa: E402

# Each variant has the changes of those before it, but for the two that replace what an earlier one did.
VARIANTS = {
    "plain": "PyTorch's own modules, nothing changed",
    "inplace": "+ ReLU in place",
    "fused": "+ SGD as one kernel",
    "kept": "+ freed memory kept",
    "channels": "+ channels last",
    "bits": "+ dropout masks from 16-bit integers (left out: gaps are faster)",
    "gaps": "+ dropout by drawing gaps, instead",
    "one": "+ batch norm and dropout in one (cpu.py as it is)",
    "single": "the same, on one thread",
}


def replace_dropout(model: Any, make: Any) -> None:
    """Put ``make(p)`` in the place of each dropout of ``model``."""
    from torch import nn

    for module in list(model.modules()):
        for name, part in list(module.named_children()):
            if isinstance(part, nn.Dropout):
                setattr(module, name, make(part.p))


def child(variant: str, steps: int) -> None:
    """Be the variant: its part 'step' does ``steps`` training steps."""
    import torch
    import torch.nn.functional as F

    import cpu
    import model as network

    class Bits(torch.nn.Dropout):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
            drawn = bits.view(torch.int16)[: x.numel()].as_strided(x.shape, x.stride())
            mask = torch.empty_like(x)
            torch.ge(drawn, round(self.p * 65536) - 32768, out=mask)
            return x * mask.mul_(1 / (1 - self.p))

    class Gaps(torch.nn.Dropout):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mask = torch.full_like(x, 1 / (1 - self.p))
            cpu.rows(mask).view(-1).index_fill_(0, cpu.drop_positions(x.numel(), self.p), 0)
            return x * mask

    level = list(VARIANTS).index(variant)
    if level == 0:
        relu = F.relu
        network.F.relu = lambda x, inplace=False: relu(x)  # type: ignore[attr-defined]
    model = network.Net()
    if level >= 3:
        cpu.keep_freed_memory()
    if level >= 4:
        model.to(memory_format=torch.channels_last)
    if variant in ("bits", "gaps"):
        replace_dropout(model, Bits if variant == "bits" else Gaps)
    if level >= 7:
        cpu.speed_up(model)
    if variant == "single":
        torch.set_num_threads(1)
    fused = True if level >= 2 else None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, fused=fused)
    data, target = torch.randn(128, 1, 28, 28), torch.randint(10, (128,))

    def step() -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            F.nll_loss(model(data), target).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    serve({"step": step}, lambda: None)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure each change to the CPU's training step.")
    parser.add_argument("--turns", type=int, default=15, help="turns of each variant (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="steps in a turn (default: %(default)s)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args.child, args.steps)

    import torch

    from checkpoint import versions

    commands = {
        name: [sys.executable, "-m", "benchmarks.cpu_changes", f"--child={name}", f"--steps={args.steps}"]
        for name in VARIANTS
    }
    seconds = take_turns(commands, ["step"], args.turns)[0]["step"]
    where = {
        "threads": torch.get_num_threads(),
        **versions(),
        "turns": args.turns,
        "steps a turn": args.steps,
    }
    print(", ".join(f"{key} {value}" for key, value in where.items()) + "\n")
    print("| change | ms a step | times the one before | spread |\n| --- | --- | --- | --- |")
    names = list(VARIANTS)
    for name in names:
        # 'gaps' replaces 'bits', so both stand against 'channels'; 'single' stands against the whole.
        before = {"plain": "plain", "gaps": "channels"}.get(name, names[names.index(name) - 1])
        pairs = zip(seconds[before], seconds[name], strict=True)
        ratios = sorted(theirs / mine for theirs, mine in pairs)
        print(
            f"| {VARIANTS[name]} | {1000 / args.steps * statistics.median(seconds[name]):.1f} "
            f"| {statistics.median(ratios):.2f} | {ratios[0]:.2f} to {ratios[-1]:.2f} |"
        )


if __name__ == "__main__":
    main()
