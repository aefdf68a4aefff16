"""The methods of images, for the sweep of all operations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..window import Window

if TYPE_CHECKING:
    from .operations import Operations

__all__ = ["spatial_operations"]

SIZE = 7, 6
WINDOWS = {
    "2x2": Window((2, 2), (2, 2)),
    "overlapping": Window((3, 3), (2, 1), ((1, 1), (0, 2))),
    "dilated": Window((2, 3), (1, 2), ((0, 1), (2, 2)), (3, 2)),
    "whole": Window(SIZE),
}


def spatial_operations(ops: Operations) -> None:
    """Convolution, pooling, sizes, group normalisation, spatial dropout.

    Parameters
    ----------
    ops : Operations
        Gets the calls; its columns, up to 72, are channels, its rows, up to 6, images.
    """
    n, c = min(ops.shape[0], 6), min(ops.shape[1], 72)
    x = ops._data(n, *SIZE, c)
    for label, window in WINDOWS.items():
        sizes = window.out_size(*SIZE)
        _pools(ops, label, x, window, (n, *sizes, c))
        for groups, outputs in ((1, 5), (c, 2 * c)):
            _convolution(ops, f"{label}, {groups} groups", x, window, groups, (n, *sizes, outputs))
    _masked_pools(ops, n, c)
    _sizes(ops, x, n, c)
    _normalisation(ops, n, c)


def _convolution(ops: Operations, label: str, x: Any, window: Window, groups: int, shape: tuple[int, ...]) -> None:
    c, m = x.shape[-1], shape[-1]
    W, b = ops._data(*window.size, c // groups, m), ops._data(m)
    options = {"groups": groups}
    ops._call("conv", x, W, window, out=ops._out(f"conv {label}", *shape), **options)
    dy = ops._data(*shape)
    ops._call("conv_input_grad", dy, W, window, dx=ops._out(f"conv dx {label}", *x.shape), **options)
    ops._call("conv_weight_grad", dy, x, window, dW=ops._out(f"conv dW {label}", *W.shape, full=True), **options)
    for act in ("tanh", "gelu"):
        name = f"conv {act} {label}"
        out, z = ops._out(name, *shape), ops._out(f"{name} z", *shape)
        ops._call("conv_act", x, W, b, act, window, out=out, saved=z, **options)
        # Not what was just computed, as for linear layers
        saved = ops._saved(act, shape[0] * shape[1] * shape[2], m).reshape(shape)
        used = ops._out(f"{name} dy", *shape)
        ops._call("fill", used, 0.5)  # used up by the call
        dx, dW, db = (
            ops._out(f"{name} {d}", *s, full=d != "dx") for d, s in (("dx", x.shape), ("dW", W.shape), ("db", (m,)))
        )
        ops._call("conv_act_grad", used, x, W, saved, act, window, dx=dx, dW=dW, db=db, **options)


def _pools(ops: Operations, label: str, x: Any, window: Window, shape: tuple[int, ...]) -> None:
    y, dy = ops._out(f"max_pool {label}", *shape), ops._data(*shape)
    ops._call("max_pool", x, window, out=y)
    ops._call("max_pool_grad", dy, x, y, window, dx=ops._out(f"max_pool dx {label}", *x.shape))
    for count in (False, True):
        name = f"avg_pool {label} {count}"
        ops._call("avg_pool", x, window, count_padding=count, out=ops._out(name, *shape))
        ops._call("avg_pool_grad", dy, window, count_padding=count, dx=ops._out(f"{name} dx", *x.shape))


def _masked_pools(ops: Operations, n: int, c: int) -> None:
    x, dy, steps = ops._data(n, 13, c), ops._data(n, c), ops.rng.random((n, 13)) < 0.7
    steps[0] = n == 1  # of several sequences the first one is all padding
    mask = ops._device(steps.astype(ops.dtype))
    y, dx = ops._out("masked_max", n, c), ops._out("masked_max dx", *x.shape)
    ops._call("masked_max", x, mask, out=y)
    ops._call("masked_max_grad", dy, x, y, mask, dx=dx)
    ops._call("masked_mean", x, mask, out=ops._out("masked_mean", n, c))
    ops._call("masked_mean_grad", dy, mask, dx=ops._out("masked_mean dx", *x.shape))


def _sizes(ops: Operations, x: Any, n: int, c: int) -> None:
    h, w = SIZE
    larger = ops._out("pad", n, h + 3, w + 1, c)
    ops._call("pad", x, 2, 1, out=larger)
    ops._call("crop", ops._data(n, h + 3, w + 1, c), 2, 1, out=ops._out("crop", n, h, w, c))
    ops._call("upsample", x, (2, 3), out=ops._out("upsample", n, 2 * h, 3 * w, c))
    dy = ops._data(n, 2 * h, 3 * w, c)
    ops._call("upsample_grad", dy, (2, 3), dx=ops._out("upsample dx", n, h, w, c))
    ops._call("upsample_bilinear", x, (2, 3), out=ops._out("upsample_bilinear", n, 2 * h, 3 * w, c))
    ops._call("upsample_bilinear_grad", dy, (2, 3), dx=ops._out("upsample_bilinear dx", n, h, w, c))


def _normalisation(ops: Operations, n: int, c: int) -> None:
    x, dy = ops._data(n, 42, c), ops._data(n, 42, c)
    gamma, beta = ops._data(c, full=True), ops._data(c, full=True)
    for groups in (1, c):
        name = f"group_norm {groups}"
        stats = {key: ops._out(f"{name} {key}", n, groups, full=True) for key in ("mean", "rstd")}
        out = ops._out(name, n, 42, c)
        ops._call("group_norm", x, gamma, beta, groups=groups, eps=1e-3, out=out, **stats)
        grads = {
            key: ops._out(f"{name} {key}", *shape, full=key != "dx")
            for key, shape in (("dx", (n, 42, c)), ("dgamma", (c,)), ("dbeta", (c,)))
        }
        ops._call("group_norm_grad", dy, x, gamma, *stats.values(), groups=groups, **grads)
    state = ops._state("spatial_dropout state", SEED_LO=5, SEED_HI=6)
    out = ops._out("spatial_dropout", n, 42, c)
    ops._call("spatial_dropout", x, state, rate=0.25, stream=2, out=out)
