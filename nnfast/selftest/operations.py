"""Every method of the backend contract once, on data of one seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import activations
from ..backends.formulas import ACTIVATIONS, LOSSES, softmax
from ..kernels import step_state as S
from .attention_operations import attention_operations
from .recurrent_operations import add_recurrent
from .spatial_operations import spatial_operations

#: step method, names of its moments, options
OPTIMIZERS: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("adagrad_step", 1, {}),
    ("adam_step", 2, {"decoupled": False}),
    ("adam_step", 2, {"decoupled": True}),
    ("adamax_step", 2, {}),
    ("nadam_step", 2, {}),
    ("lion_step", 1, {}),
)


class Operations:
    """Calls with their arrays, made once, so that :meth:`run` is a steady-state step.

    Parameters
    ----------
    bk : Backend
        Where to run.
    dtype : dtype
        Of activations, and of weights in products.
    rows, columns : int
        Size of the arrays.
    offset : int
        Elements between an aligned address and the start of each float array.
    full : dtype, optional
        Of all other floats; by default `dtype`.
    exact : bool
        Whether all floats, rounded to what they would be, are float64: then this is the reference.
    """

    def __init__(
        self,
        bk: Any,
        dtype: Any,
        rows: int = 300,
        columns: int = 37,
        offset: int = 0,
        *,
        full: Any = None,
        exact: bool = False,
    ) -> None:
        self.bk, self.shape, self.offset, self.exact = bk, (rows, columns), offset, exact
        self.dtype = np.dtype(dtype)
        self.full = self.dtype if full is None else np.dtype(full)
        self.rng = np.random.default_rng(3)
        self.calls: list[Callable[[], None]] = []
        self.outs: dict[str, Any] = {}
        self._layers()
        self._normalisation()
        self._rows()
        self._losses()
        self._optimizers()
        attention_operations(self)
        add_recurrent(self)
        spatial_operations(self)

    def run(self) -> None:
        """Make all calls."""
        for call in self.calls:
            call()

    def results(self) -> dict[str, np.ndarray]:
        """All outputs on the host."""
        return {name: np.array(self.bk.to_numpy(x)) for name, x in self.outs.items()}

    # ---- building -------------------------------------------------------------------------------
    def _device(self, value: np.ndarray) -> Any:
        if self.exact:
            value = value.astype(np.float64)
        whole = self.bk.zeros(value.size + self.offset, value.dtype)
        out = whole[self.offset :].reshape(value.shape)
        self.bk.copy(value, out=out)
        return out

    def _data(self, *shape: int, low: float | None = None, full: bool = False) -> Any:
        value = self.rng.standard_normal(shape) if low is None else low + self.rng.random(shape)
        return self._device(value.astype(self.full if full else self.dtype))

    def _saved(self, name: str, n: int, m: int) -> Any:
        """What an activation leaves for its gradient, of random numbers."""
        row, z = activations.get(name), self.rng.standard_normal((n, m)).astype(self.dtype).astype(np.float64)
        if row.saves == "output":
            z = softmax(np, z) if name == "softmax" else ACTIVATIONS[name][0](np, z, row.alpha)
        return self._device(z.astype(self.dtype))

    def _out(self, label: str, *shape: int, full: bool = False, dtype: Any = None) -> Any:
        self.outs[label] = self._device(np.zeros(shape, dtype or (self.full if full else self.dtype)))
        return self.outs[label]

    def _state(self, label: str, **slots: float) -> Any:
        state = np.zeros(S.SIZE)
        defaults = {"GRAD_SCALE": 0.9, "LR": 0.05, "STEP": 3, "ROW": 2, "P0": 0.9, "P1": 0.99, "P2": 1e-3, "P3": 0.004}
        for name, value in {**defaults, "P4": 0.7, "EMA_DECAY": 0.9, "WEIGHT_DECAY": 0.01, **slots}.items():
            state[getattr(S, name)] = value
        self.outs[label] = self.bk.asarray(state)
        return self.outs[label]

    def _call(self, method: str, *args: Any, **kwargs: Any) -> None:
        function = getattr(self.bk, method)
        self.calls.append(lambda: function(*args, **kwargs))

    # ---- the calls ------------------------------------------------------------------------------
    def _layers(self) -> None:
        n, m = self.shape
        x, b, small, W = self._data(n, m), self._data(m), self._data(n, 5), self._data(5, m)
        for name in activations.names():
            self._call("act", name, x, out=self._out(f"act {name}", n, m))
            # Not what was just computed: a last digit can lie on the other side of a kink
            saved = self._saved(name, n, m)
            self._call("act_grad", name, self._data(n, m), saved, out=self._out(f"act_grad {name}", n, m))
            y, z = self._out(f"linear {name}", n, m), self._out(f"linear z {name}", n, m)
            self._call("linear_act", small, W, b, name, out=y, saved=z)
            dy = self._out(f"linear dy {name}", n, m)
            self._call("fill", dy, 0.5)  # used up by the call
            dx, dW, db = (
                self._out(f"linear {d} {name}", *s, full=d != "dx")
                for d, s in (("dx", (n, 5)), ("dW", (5, m)), ("db", (m,)))
            )
            self._call("linear_act_grad", dy, small, W, saved, name, dx=dx, dW=dW, db=db)
        self._call("add", x, x, out=self._out("add", n, m))
        self._call("sum_rows", x, out=self._out("sum_rows", m, full=True))
        random = self._state("dropout state", SEED_LO=5, SEED_HI=6)
        self._call("dropout", x, random, rate=0.25, stream=2, out=self._out("dropout", n, m))

    def _normalisation(self) -> None:
        n, m = self.shape
        x, dy, gamma, beta = self._data(n, m), self._data(n, m), self._data(m, full=True), self._data(m, full=True)
        for kind, size, second in (("layer", n, "rstd"), ("batch", m, "var")):
            stats = {name: self._out(f"{kind} {name}", size, full=True) for name in ("mean", second)}
            eps = {"eps": 1e-3}
            self._call(f"{kind}_norm", x, gamma, beta, out=self._out(f"{kind} out", n, m), **stats, **eps)
            grads = {
                name: self._out(f"{kind} {name}", *s, full=name != "dx")
                for name, s in (("dx", (n, m)), ("dgamma", (m,)), ("dbeta", (m,)))
            }
            self._call(f"{kind}_norm_grad", dy, x, gamma, *stats.values(), **grads, **(eps if kind == "batch" else {}))
        running = {name: self._out(name, m, full=True) for name in ("running_mean", "running_var")}
        self._call("batch_norm_track", *stats.values(), self._state("track"), rows=n, momentum=0.1, **running)
        out = self._out("batch inference", n, m)
        self._call("batch_norm_inference", x, gamma, beta, *running.values(), eps=1e-3, out=out)

    def _rows(self) -> None:
        n, m = self.shape
        order = self.bk.asarray(self.rng.permutation(n))
        state = self._state("rows state")
        for width in (1, 2, 4, 8, 16):
            x = self.bk.asarray(self.rng.integers(0, 256, (n, width)).astype(np.uint8))
            batch = self.bk.zeros((n - 5, width), np.uint8)
            self.outs[f"take_batch {width}"] = batch
            self._call("take_batch", x, order, state, out=batch)
            self.outs[f"store_batch {width}"] = self.bk.zeros((n, width), np.uint8)
            self._call("store_batch", batch, state, out=self.outs[f"store_batch {width}"])
            wide = self.bk.asarray(self.rng.integers(0, 256, (n, 2 * width)).astype(np.uint8))
            self.outs[f"copy_columns {width}"] = whole = self.bk.zeros((n, 3 * width), np.uint8)
            self._call("copy_columns", wide[:, width:], out=whole[:, width : 2 * width])
        x = self._data(n, m)
        self._call("take_rows", x, order, out=self._out("take_rows", n, m))
        many = self.bk.asarray(self.rng.integers(0, 7, n))
        self._call("add_at_rows", self._data(n, m), many, out=self._out("add_at_rows", 7, m, full=True))

    def _losses(self) -> None:
        n, m = self.shape
        pred = self._data(n, m)
        target, weight = self._data(n, m, low=0.0, full=True), self._data(n, low=0.5, full=True)
        for name in LOSSES:
            out = self._out(f"{name} dpred", n, m)
            self._call("elementwise_loss", name, pred, target, weight, self._state(name), param=0.5, dpred=out)
        labels = self.bk.asarray(self.rng.integers(0, m, n))
        for label, targets in (("hard", labels), ("soft", target)):
            out, state = self._out(f"xent {label}", n, m), self._state(f"xent state {label}")
            self._call("softmax_xent", pred, targets, weight, state, smoothing=0.1, dlogits=out)

    def _optimizers(self) -> None:
        size = self.shape[0] * self.shape[1]
        grad = self._data(size, full=True)
        state = self._state("step state", LOSS=1.5, BATCH_WEIGHT=4.0)
        self._call("begin_step", state, self.bk.asarray(np.linspace(0.1, 0.2, 9)))
        self._call("sum_losses", state, weight=0.5, first=True)
        self._call("sum_losses", state, weight=0.25, first=False)
        self._call("record_loss", state)
        self._call("end_step", state, 32)
        ended = self._state("epoch state", LOSS_SUM=6.0, WEIGHT_SUM=4.0)
        self._call("fill", ended[S.EPOCH_INDEX : S.EPOCH_INDEX + 1], 1.0)
        self._call("end_epoch", ended, self._out("results", 2, 3, dtype=np.float64))
        self._call("sq_norm", grad, out=self._out("sq_norm", 1, dtype=np.float64))
        self._call("clip_norm", grad, state, max_norm=0.5)
        clipped = self._out("clip_value", size, full=True)
        self._call("copy", grad, out=clipped)
        self._call("clip_value", clipped, limit=0.1)
        penalised = self._out("l2_penalty", size, full=True)
        self._call("copy", grad, out=penalised)
        charged = self._state("l2_penalty state", LOSS=1.5, BATCH_WEIGHT=4.0, LOSS_SUM=6.0)
        self._call("l2_penalty", self._data(size, full=True), penalised, charged, strength=0.3, share=0.5)
        self._call("ema_step", grad, self._out("ema", size, full=True), state)

        def step(method: str, label: str, moments: list[Any], **options: Any) -> None:
            param = self._out(f"{label} param", size, full=True)
            self._call(method, param, grad, *moments, self._state(f"{label} state"), **options)

        for method, count, options in OPTIMIZERS:
            label = f"{method} {options}"
            step(method, label, [self._out(f"{label} {i}", size, full=True) for i in range(count)], **options)
        step("sgd_step", "sgd", [None], nesterov=False)
        for nesterov in (False, True):
            velocity = self._out(f"sgd {nesterov} velocity", size, full=True)
            step("sgd_step", f"sgd {nesterov}", [velocity], nesterov=nesterov)
        for centered in (False, True):
            for moving in (False, True):
                label = f"rmsprop {centered} {moving}"
                held = [
                    self._out(f"{label} {i}", size, full=True) if used else None
                    for i, used in enumerate((1, centered, moving))
                ]
                step("rmsprop_step", label, held)
