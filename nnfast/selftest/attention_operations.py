"""The methods of attention, for the sweep of all operations."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .operations import Operations

__all__ = ["attention_operations"]

HEADS, BATCH = 2, 2


def attention_operations(ops: Operations) -> None:
    """Attention of a sequence to itself and to another one, rotary positions, normalisation, masks.

    Parameters
    ----------
    ops : Operations
        Gets the calls; its rows are steps, up to 70, and its columns, up to 72, features of a head, made even.
    """
    rows, columns = ops.shape
    features = min(columns, 72)
    width = HEADS * (features + features % 2)
    t, s = min(rows, 70), min(rows, 33)
    for label, steps, causal, masked in (("self", t, True, False), ("cross", s, False, True), ("short", s, True, True)):
        _attention(ops, label, t, steps, width, causal, masked)
    x = ops._data(BATCH, t, width)
    for inverse in (False, True):
        out = ops._out(f"rotary {inverse}", BATCH, t, width)
        ops._call("rotary", x, heads=HEADS, base=1000.0, first=3, inverse=inverse, out=out)
    x, dy, gamma = ops._data(rows, columns), ops._data(rows, columns), ops._data(columns, full=True)
    rstd = ops._out("rms rstd", rows, full=True)
    ops._call("rms_norm", x, gamma, eps=1e-3, out=ops._out("rms out", rows, columns), rstd=rstd)
    dx, dgamma = ops._out("rms dx", rows, columns), ops._out("rms dgamma", columns, full=True)
    ops._call("rms_norm_grad", dy, x, gamma, rstd, dx=dx, dgamma=dgamma)
    indices = ops.bk.asarray(ops.rng.integers(0, 2, (rows, 1)))
    ops._call("step_mask", indices, value=0.0, out=ops._out("step mask of indices", rows))
    padded = ops._device((ops.rng.random((rows, columns)) < 0.5 / columns).astype(ops.dtype))
    ops._call("step_mask", padded, value=0.0, out=ops._out("step mask", rows))
    ops._call("scale_rows", x, ops._data(rows), out=ops._out("scale rows", rows, columns))


def _attention(ops: Operations, label: str, t: int, s: int, width: int, causal: bool, masked: bool) -> None:
    """Both directions; keys and values are columns of one array, and so are their gradients."""
    q, kv, dy = ops._data(BATCH, t, width), ops._data(BATCH, s, 2 * width), ops._data(BATCH, t, width)
    mask = None
    if masked:
        kept = ops.rng.random((BATCH, s)) < 0.7
        kept[0] = label == "cross"
        mask = ops._device(kept.astype(ops.dtype))
    options = {"heads": HEADS, "causal": causal, "scale": (width // HEADS) ** -0.5, "mask": mask}
    out, lse = ops._out(f"attention {label}", BATCH, t, width), ops._out(f"lse {label}", BATCH, HEADS, t, full=True)
    parts = [kv[..., :width], kv[..., width:]]
    ops._call("attention", q, *parts, **options, out=out, lse=lse)
    dq = ops._out(f"attention dq {label}", BATCH, t, width)
    dkv = ops._out(f"attention dkv {label}", BATCH, s, 2 * width)
    gradients = {"dq": dq, "dk": dkv[..., :width], "dv": dkv[..., width:]}
    ops._call("attention_grad", dy, q, *parts, **options, out=out, lse=lse, **gradients)
