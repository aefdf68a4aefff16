"""A backend's primitives as functions: what is not given is allocated and returned, and shapes are checked.

:func:`get_backend` gives a backend whose compute methods, called without their output arrays, make them; called with
all of them they are the contract's own (``backends/base.py``), and return nothing. Inputs may be any arrays that the
device understands: NumPy's, PyTorch's and others through DLPack.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, wraps
from typing import Any

import numpy as np

from . import devices
from .backends.base import Array, Backend
from .kernels import step_state as S

__all__ = ["Functions", "get_backend"]


@dataclass(frozen=True)
class _Operation:
    """What a method takes and makes.

    Dimensions go by letters, equal ones are equal; ``...`` is any number of further ones, the same for all.

    Attributes
    ----------
    inputs, outputs : dict of str to str
        Dimensions of the arrays, by parameter.
    slots : dict of str to (slot, default)
        Where there is a step state: what it holds of the call's own keyword arguments. One without default must be
        given.
    loss : bool
        Whether the state's LOSS is returned first, as a float.
    """

    inputs: dict[str, str]
    outputs: dict[str, str] = field(default_factory=dict)
    slots: dict[str, tuple[int, float | None]] = field(default_factory=dict)
    loss: bool = False


def _dims(text: str) -> dict[str, str]:
    return {name.strip(): dims.strip() for name, _, dims in (part.partition(":") for part in text.split(",") if part)}


def _step(arrays: str, **slots: tuple[int, float | None]) -> _Operation:
    """An optimizer's step: the learning rate must be given, and where the rule asks for it the number of the step."""
    common: dict[str, tuple[int, float | None]] = {"lr": (S.LR, None), "weight_decay": (S.WEIGHT_DECAY, 0.0)}
    return _Operation(dict.fromkeys(arrays.split(), "s"), slots={**common, **slots})


_T = {"t": (S.STEP, None)}
_ADAM = {"beta1": (S.P0, 0.9), "beta2": (S.P1, 0.999), "eps": (S.P2, 1e-8)}
_OPERATIONS: dict[str, _Operation] = {
    "add": _Operation(_dims("x: ..., y: ..."), _dims("out: ...")),
    "add_bias": _Operation(_dims("x: n m, b: m"), _dims("out: n m")),
    "sum_rows": _Operation(_dims("x: n m"), _dims("out: m")),
    "act": _Operation(_dims("z: ..."), _dims("out: ...")),
    "act_grad": _Operation(_dims("dy: ..., saved: ..."), _dims("out: ...")),
    "take_rows": _Operation(_dims("x: r ..., index: n"), _dims("out: n ...")),
    "dropout": _Operation(
        _dims("x: ..."), _dims("out: ..."), {"seed": (S.SEED_LO, None), "t": (S.STEP, 1.0)}
    ),
    "layer_norm": _Operation(_dims("x: n m, gamma: m, beta: m"), _dims("out: n m, mean: n, rstd: n")),
    "layer_norm_grad": _Operation(
        _dims("dy: n m, x: n m, gamma: m, mean: n, rstd: n"), _dims("dx: n m, dgamma: m, dbeta: m")
    ),
    "batch_norm": _Operation(_dims("x: n m, gamma: m, beta: m"), _dims("out: n m, mean: m, var: m")),
    "batch_norm_grad": _Operation(
        _dims("dy: n m, x: n m, gamma: m, mean: m, var: m"), _dims("dx: n m, dgamma: m, dbeta: m")
    ),
    "batch_norm_inference": _Operation(_dims("x: n m, gamma: m, beta: m, mean: m, var: m"), _dims("out: n m")),
    "rms_norm": _Operation(_dims("x: n m, gamma: m"), _dims("out: n m, rstd: n")),
    "rms_norm_grad": _Operation(_dims("dy: n m, x: n m, gamma: m, rstd: n"), _dims("dx: n m, dgamma: m")),
    "attention": _Operation(_dims("q: n t f, k: n s f, v: n s f, mask: n s"), _dims("out: n t f")),
    "attention_grad": _Operation(
        _dims("dy: n t f, q: n t f, k: n s f, v: n s f, mask: n s, out: n t f, lse: n h t"),
        _dims("dq: n t f, dk: n s f, dv: n s f"),
    ),
    "rotary": _Operation(_dims("x: n t f"), _dims("out: n t f")),
    "scale_rows": _Operation(_dims("x: n m, scale: n"), _dims("out: n m")),
    "linear_act": _Operation(_dims("x: n k, W: k m, b: m"), _dims("out: n m")),
    "linear_act_grad": _Operation(_dims("dy: n m, x: n k, W: k m, saved: n m"), _dims("dx: n k, dW: k m, db: m")),
    "elementwise_loss": _Operation(_dims("pred: n m, target: n m, weight: n"), _dims("dpred: n m"), loss=True),
    "softmax_xent": _Operation(_dims("logits: n c, labels: n | n c, weight: n"), _dims("dlogits: n c"), loss=True),
    "sgd_step": _step("param grad velocity", momentum=(S.P0, 0.0)),
    "adagrad_step": _step("param grad total", eps=(S.P0, 1e-10)),
    "rmsprop_step": _step("param grad sq mean velocity", rho=(S.P0, 0.9), eps=(S.P1, 1e-8), momentum=(S.P2, 0.0)),
    "adam_step": _step("param grad m v", **_T, **_ADAM),
    "adamax_step": _step("param grad m u", **_T, **_ADAM),
    "lion_step": _step("param grad m", beta1=(S.P0, 0.9), beta2=(S.P1, 0.99)),
}  # fmt: skip
# Arrays that are written where they are
_IN_PLACE = ("param", "velocity", "total", "sq", "mean", "m", "v", "u")
_WHOLE_NUMBERS = ("index",)


class Functions:
    """Mixin in front of a backend's class: the methods of the table take what is there and make the rest."""

    plain: Backend
    xp: Any
    empty: Callable[..., Array]
    asarray: Callable[..., Array]
    to_numpy: Callable[..., Any]

    def __repr__(self) -> str:
        return f"<backend {self.plain.device}>"

    def gemm(
        self,
        a: Array,
        b: Array,
        *,
        out: Array | None = None,
        trans_a: bool = False,
        trans_b: bool = False,
        beta: float = 0.0,
    ) -> Array | None:
        """``op(a) @ op(b)``, or into `out`, plus ``beta * out``."""
        operation = _Operation(
            _dims(f"a: {'k n' if trans_a else 'n k'}, b: {'m k' if trans_b else 'k m'}"), {"out": "n m"}
        )
        call = {"a": a, "b": b, "out": out, "trans_a": trans_a, "trans_b": trans_b, "beta": beta}
        return self._called("gemm", operation, call, given=out is not None)

    def _called(self, name: str, operation: _Operation, call: dict[str, Any], *, given: bool = False) -> Any:
        """Make the call; what it allocates is returned, one array or several."""
        arrays: dict[str, Array] = {}
        sizes: dict[str, Any] = {}
        for parameter, dims in {**operation.inputs, **operation.outputs}.items():
            value = call.get(parameter)
            if value is None:
                continue
            written = parameter in operation.outputs or (operation.slots and parameter in _IN_PLACE)
            call[parameter] = arrays[parameter] = self._array(name, parameter, value, bool(written))
            _match(name, parameter, arrays[parameter].shape, dims, sizes)
        self._one_dtype(name, arrays)
        dtype = next(x.dtype for x in arrays.values() if x.dtype.kind == "f")
        made = []
        for parameter, dims in operation.outputs.items():
            if parameter not in call or (parameter == "out" and call[parameter] is None):
                call[parameter] = self.empty(_shape(dims, sizes), dtype)
                made.append(call[parameter])
        if vars(self) is vars(self.plain):
            self.plain.repeated(name, call)
        else:  # a copy that records a step
            getattr(super(), name)(**call)
        if not made or given:
            return None
        return made[0] if len(made) == 1 else tuple(made)

    def _array(self, name: str, parameter: str, value: Any, written: bool) -> Array:
        """A parameter as an array of this device, in one piece; what is written must be one already."""
        x = self.asarray(value)
        if written and x.shape and not self._shares(x, value):
            raise ValueError(f"{name}: {parameter} is written to, so it must be in one piece on {self.plain.device}")
        if x.dtype.kind not in "f" and parameter not in (*_WHOLE_NUMBERS, "labels"):
            raise TypeError(f"{name}: {parameter} must be floats, not {x.dtype}")
        return (
            x.astype(np.int64, copy=False) if parameter in (*_WHOLE_NUMBERS, "labels") and x.dtype.kind in "iu" else x
        )

    def _shares(self, x: Array, value: Any) -> bool:
        if x is value:
            return True
        return self.xp is np and isinstance(x, np.ndarray) and np.may_share_memory(x, np.asarray(value))

    @staticmethod
    def _one_dtype(name: str, arrays: dict[str, Array]) -> None:
        floats = {
            parameter: x.dtype for parameter, x in arrays.items() if x.dtype.kind == "f" and parameter != "weight"
        }
        if len(set(floats.values())) > 1:
            found = ", ".join(f"{parameter} {dtype}" for parameter, dtype in floats.items())
            raise TypeError(f"{name}: all arrays must be of one dtype, got {found}")


@cache
def _forms(dims: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(form.split()) for form in dims.split("|"))


def _match(name: str, parameter: str, shape: tuple[int, ...], dims: str, sizes: dict[str, Any]) -> None:
    """Compare a shape with its dimensions, and note those that are new."""
    forms = _forms(dims)
    for form in forms:
        if len(form) == len(shape) and "..." not in form:
            break
        if "..." in form and len(shape) >= len(form) - 1:
            break
    else:
        raise ValueError(f"{name}: {parameter} has shape {shape}, expected {_written(forms)}")
    for place, letter in enumerate(form):
        size: Any = shape[place:] if letter == "..." else shape[place]
        if sizes.setdefault(letter, size) != size:
            known = ", ".join(f"{k} = {v}" for k, v in sizes.items() if k in form)
            raise ValueError(f"{name}: {parameter} has shape {shape}, expected {_written(forms)} with {known}")


def _written(forms: tuple[tuple[str, ...], ...]) -> str:
    return " or ".join(f"({', '.join(form)})" for form in forms)


def _shape(dims: str, sizes: dict[str, Any]) -> tuple[int, ...]:
    shape: tuple[int, ...] = ()
    for letter in dims.split():
        shape += sizes[letter] if letter == "..." else (sizes[letter],)
    return shape


def _state_of(self: Any, name: str, operation: _Operation, options: dict[str, Any]) -> Array:
    """A step state with the call's own hyperparameters, which are taken out of `options`."""
    host = np.zeros(S.SIZE)
    host[S.GRAD_SCALE] = 1.0
    for key, (slot, default) in operation.slots.items():
        value = options.pop(key, default)
        if value is None:
            raise TypeError(f"{name} needs {key}=, or a step state as state=")
        if key == "seed":
            host[S.SEED_LO], host[S.SEED_HI] = int(value) & 0xFFFFFFFF, int(value) >> 32
        else:
            host[slot] = float(value)
    return self.asarray(host)


def _method(name: str, operation: _Operation) -> Callable[..., Any]:
    declared = getattr(Backend, name)
    parameters = inspect.signature(declared).parameters
    flags = {n: False for n in ("nesterov", "decoupled") if n in parameters}
    names = [n for n in parameters if n != "self"]
    optional = [n for n in names if "None" in str(parameters[n].annotation)]
    needs_state = "state" in names

    @wraps(declared)
    def call(self: Functions, *args: Any, **options: Any) -> Any:
        positional = [n for n in names if parameters[n].kind is not inspect.Parameter.KEYWORD_ONLY]
        if len(args) > len(positional):
            raise TypeError(f"{name} takes {len(positional)} positional arguments, got {len(args)}")
        bound = dict(zip(positional, args, strict=False))
        if twice := bound.keys() & options.keys():
            raise TypeError(f"{name} got {', '.join(sorted(twice))} twice")
        state = bound.get("state", options.get("state"))
        own = needs_state and state is None
        if own:
            bound["state"] = state = _state_of(self, name, operation, options)
        if unknown := options.keys() - set(names):
            raise TypeError(f"{name} has no argument {', '.join(sorted(unknown))}")
        bound = {**flags, **bound, **{key: value for key, value in options.items() if not (own and key == "state")}}
        for key in optional:
            if key not in operation.outputs:
                bound.setdefault(key, None)
        missing = [
            n for n in names
            if n not in bound and n not in operation.outputs and parameters[n].default is inspect.Parameter.empty
        ]  # fmt: skip
        if missing:
            raise TypeError(f"{name} needs {', '.join(missing)}")
        result = self._called(name, operation, bound)
        if not own:
            return result
        host = self.to_numpy(state)
        if host[S.BAD_STEP] and not operation.loss:
            raise FloatingPointError(f"{name}: a new value is not finite; the old one is kept")
        return (float(host[S.LOSS]), result) if operation.loss else result

    call.__doc__ = (
        f"{inspect.getdoc(declared)}\n\nWhat is not given of {', '.join(operation.outputs) or 'the state'} is made."
    )
    return call


for _name, _operation in _OPERATIONS.items():
    setattr(Functions, _name, _method(_name, _operation))

_views: dict[int, Any] = {}


def get_backend(device: str | Backend | None = None, *, fused: bool = True) -> Any:
    """The backend of a device, whose primitives can be called as functions; one object per device.

    Parameters
    ----------
    device : str, Backend or None
        ``"numpy"``, ``"numba"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"auto"``, the default.
    fused : bool
        ``False`` gives a backend that computes fused operations from primitives.

    Returns
    -------
    Backend
        With the methods of ``backends/base.py``. Those that compute may be called without their output arrays, which
        they then make and return; losses without a state return ``(loss, gradient)``, optimizers' steps without one
        take ``lr=``, ``t=`` and their hyperparameters. It can be given as ``device=`` everywhere.

    Raises
    ------
    DeviceUnavailable
        If the device was named and cannot be used; the message says why.
    ValueError, TypeError
        If it is no device. The functions raise them for shapes and dtypes that do not fit, and name both.

    Examples
    --------
    >>> bk = get_backend("numpy")
    >>> x, W = np.ones((2, 3)), np.full((3, 2), 0.5)
    >>> bk.linear_act(x, W, None, "relu").tolist()
    [[1.5, 1.5], [1.5, 1.5]]
    """
    plain = devices.get_backend(device, fused=fused)
    view = _views.get(id(plain))
    if view is None or view.plain is not plain:
        kind: Any = type(f"Functional{type(plain).__name__}", (Functions, type(plain)), {"plain": plain})
        view = object.__new__(kind)
        view.__dict__ = plain.__dict__  # one and the same backend
        _views[id(plain)] = view
    return view
