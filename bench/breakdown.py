"""Where the time of a step of the ``numba`` device goes, kernel by kernel, adding up to the step.

python -m nnfast.bench.breakdown [--cutoff PERCENT] WORKLOAD ...
"""

from __future__ import annotations

import argparse

from ..backends.numba_replay import NumbaReplay
from ..kernels import step_state as S
from ..kernels.cpu.profile import Part, profile
from ..training.engine import Engine
from ..training.sources import ResidentSource
from . import floor
from .contenders.nnfast_devices import NumbaDevice
from .workloads import Workload, find, initial_weights, make_data

__all__ = ["breakdown", "main", "rows"]


def breakdown(workload: Workload, seconds: float = 1.0) -> tuple[float, list[Part]]:
    """Seconds of a full step and of its kernels, measured for some time.

    Parameters
    ----------
    workload : Workload
        What to train.
    seconds : float
        How long to measure.
    """
    X, y = make_data(workload)
    contender = NumbaDevice(workload, initial_weights(workload), X, y, threads=0)
    contender.epochs(1)
    model = contender.model
    loss = model.loss
    assert loss is not None
    source = ResidentSource(X, loss.targets(y, model.out_shape, model.dtype), None, workload.batch, True, 0)
    steps = max(1, workload.rows // workload.batch)
    engine = Engine(
        model,
        loss,
        contender.optimizer,
        model.parameters.backend,
        model.dtype,
        source.batch,
        targets=source.targets,
        weighted=False,
        lr_steps=steps,
    )
    source.attach(engine)
    source.order_rows(engine, 0, 1)
    engine.run(source.batch)  # fills the table of learning rates
    replay = engine.plan.replay(source.batch)
    assert isinstance(replay, NumbaReplay)
    program = replay.many
    assert program is not None

    def begin() -> None:
        engine.begin_epochs()
        engine.set(S.CURSOR, 0.0)

    return profile(program, steps, begin, seconds)


def rows(workload: Workload, total: float, parts: list[Part], cutoff: float = 0.5) -> list[list[str]]:
    """The table: kernel, microseconds, percent; what takes less than `cutoff` percent is added up in one line.

    A chain's kernels stand one by one.
    """
    flat = [one for part in parts for one in (part.parts or [part])]
    shown: list[list[str]] = []
    small = 0.0
    for part in flat:
        share = 100 * part.seconds / total
        if share < cutoff:
            small += part.seconds
        else:
            where = "threads" if part.shared else "one thread"
            shown.append([part.name, f"{1e6 * part.seconds:,.1f}", f"{share:.1f} %", where])
    rate = floor.flops(workload) / total / 1e9
    shown.append(["all others", f"{1e6 * small:,.1f}", f"{100 * small / total:.1f} %", ""])
    shown.append(["step", f"{1e6 * total:,.1f}", f"{rate:,.0f} GFLOP/s", ""])
    return shown


def main(args: list[str] | None = None) -> None:
    """Print the table of each workload that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="+", metavar="WORKLOAD")
    parser.add_argument("--cutoff", type=float, default=0.5, help="percent below which kernels are added up")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long to measure each workload")
    options = parser.parse_args(args)
    for name in options.workloads:
        workload = find(name)
        print(workload.describe())
        for kernel, time, share, where in rows(workload, *breakdown(workload, options.seconds), options.cutoff):
            print(f"  {kernel:42} {time:>12} us  {share:>12}  {where}".rstrip())


if __name__ == "__main__":
    main()
