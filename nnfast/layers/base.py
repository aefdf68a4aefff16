"""What a layer is: it declares its arrays, and writes into what it is given.

A layer is a description until a plan binds it. Binding makes a shallow copy of the layer for one batch
size and sets on it, as attributes, the arrays that ``build`` declared: a parameter ``W`` and its gradient
``dW``, buffers, saved tensors and scratch, and the arrays ``x`` and ``y`` of its last ``forward``. So
one model can be planned at several batch sizes, and used by several threads, at the same time.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .. import activations, initializers
from ..backends.base import Array, Backend

__all__ = ["BuildContext", "Layer", "TensorSpec"]

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An array that a layer declared.

    `per_row` arrays have the batch size as their first axis, which `shape` leaves out. `full` ones stay in the type of
    the weights where activations have fewer bits.
    """

    kind: Literal["param", "buffer", "saved", "scratch", "carried"]
    name: str
    shape: Shape
    per_row: bool = False
    init: Any = None
    full: bool = False


class BuildContext:
    """Collects what a layer declares in :meth:`Layer.build`."""

    def __init__(self) -> None:
        self.specs: list[TensorSpec] = []

    def _add(self, spec: TensorSpec) -> None:
        if any(spec.name == other.name for other in self.specs):
            raise ValueError(f"the layer declares {spec.name!r} twice")
        self.specs.append(spec)

    def param(self, name: str, shape: Shape, init: Any, *, full: bool = False) -> None:
        """A trained array; the gradient goes to the attribute ``"d" + name``.

        With ``precision="bf16"`` or ``"fp16"`` it is a copy in 16 bits, unless `full`; the gradient is float32.
        """
        self._add(TensorSpec("param", name, tuple(shape), init=initializers.get(init), full=full))

    def buffer(self, name: str, shape: Shape, init: Any) -> None:
        """An array that is kept and saved with the model, but not trained, such as a running mean."""
        self._add(TensorSpec("buffer", name, tuple(shape), init=initializers.get(init)))

    def saved(self, name: str, shape: Shape, *, per_row: bool = True, full: bool = False) -> None:
        """An array that ``forward`` leaves for ``backward``; ``None`` outside training."""
        self._add(TensorSpec("saved", name, tuple(shape), per_row, full=full))

    def scratch(self, name: str, shape: Shape, *, per_row: bool = True, full: bool = False) -> None:
        """An array for intermediate results; its contents do not outlive the call."""
        self._add(TensorSpec("scratch", name, tuple(shape), per_row, full=full))

    def carried(self, name: str, shape: Shape) -> None:
        """An array (batch, *shape) that steps hand on to the next one, such as a state; zeros at first."""
        self._add(TensorSpec("carried", name, tuple(shape), per_row=True))

    def mask(self, steps: int) -> None:
        """The layer writes ``self.out_mask`` (batch, steps) in ``forward``: 1, or 0 where a step is padding."""
        self._add(TensorSpec("scratch", "out_mask", (steps,), per_row=True))


class Layer:
    """Base class of all layers, and of the user's own.

    A subclass defines :meth:`build` and :meth:`forward` and, to be trained, :meth:`backward`. Nothing is registered:
    ``nnfast.testing.check_layer(MyLayer(), shape)`` checks it.

    Attributes
    ----------
    replayable : bool
        Whether the layer does all its work through the backend, so that a step can be recorded. A
        layer that also calls NumPy itself leaves this ``False``.
    training : bool
        Set by binding: whether ``backward`` will follow, and noise is wanted.
    stream : int
        Set by binding: a number of its own for the layer's random numbers.
    many : bool
        Whether the layer takes several inputs: ``build`` a list of shapes, ``forward`` a list of arrays, ``backward`` a
        list of arrays or ``None``, one for each.
    needs_input, needs_output : bool
        Whether ``backward`` reads the arrays that ``forward`` read and wrote. Where nobody needs one any more, its
        memory is used again.
    in_place : bool
        Whether ``forward`` works where the output is the first input's own array.
    shares_gradient : bool
        Whether the gradient for the first input is `dy` itself: ``backward`` gets ``None`` for it where that is used.
    takes_indices : bool
        Whether the input is int64, such as the numbers of words, and has no gradient.
    passes_mask : bool
        Whether steps of the output are those of the input, so that what masks these masks those.
    mask : array or None
        Set by binding: (batch, steps), 1, or 0 where a step of the input is padding; ``None`` where no layer said so.
    refuses_mask : bool
        Whether the layer would give wrong results for inputs with masked steps: then it cannot be built on any.
    masks : list of (array or None)
        Likewise of each input; the first one's is `mask`, and the output's where the layer `passes_mask`.
    """

    replayable = False
    many = False
    needs_input = True
    needs_output = True
    in_place = False
    shares_gradient = False
    takes_indices = False
    passes_mask = True
    refuses_mask = False
    mask: Array | None = None
    masks: Sequence[Array | None] = (None,)
    out_mask: Array

    name: str | None = None
    training = False
    stream = 0
    x: Array
    y: Array

    def __call__(self, *inputs: Any) -> Any:
        """The layer's result on symbolic tensors, for :class:`nnfast.Model`; see :mod:`nnfast.layers.symbolic`."""
        from .symbolic import call

        return call(self, inputs)

    def build(self, in_shape: Shape, ctx: BuildContext) -> Shape:
        """Declare parameters, saved tensors and scratch for inputs of `in_shape`.

        Parameters
        ----------
        in_shape : tuple of int
            Shape of one input row, without the batch axis.
        ctx : BuildContext
            Takes the declarations.

        Returns
        -------
        tuple of int
            Shape of one output row.

        Raises
        ------
        ValueError
            If the layer cannot take inputs of this shape.
        """
        return in_shape

    def forward(self, bk: Backend, x: Array, y: Array) -> None:
        """Write the output for `x` into `y`."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward")

    def backward(self, bk: Backend, dy: Array, dx: Array | None) -> None:
        """Write the gradient for the input into `dx`, if it is asked for, and those of the parameters.

        `dy` may be overwritten. ``self.x`` and ``self.y`` are the arrays of the forward call.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define backward")

    def is_view(self, training: bool) -> bool:
        """Whether the output is the input, perhaps under another shape: no array of its own, no call."""
        return False

    # ---- description -------------------------------------------------------------------------------
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, ready for JSON: the layer is saved by its class name and these.

        The base form reads the attributes that are named like the arguments.
        """
        names = [p.name for p in inspect.signature(type(self).__init__).parameters.values()][1:]
        return {name: describe(getattr(self, name)) for name in names if hasattr(self, name)}

    def __repr__(self) -> str:
        parameters = inspect.signature(type(self).__init__).parameters
        shown = {k: v for k, v in self.config().items() if v != describe(parameters[k].default)}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in shown.items())})"

    def bind(self, arrays: dict[str, Array | None], *, training: bool, stream: int) -> Layer:
        """A copy of the layer with `arrays` set as attributes."""
        bound = copy.copy(self)
        bound.training, bound.stream = training, stream
        for name, array in arrays.items():
            setattr(bound, name, array)
        return bound

    def record(self, bk: Backend, method: Callable[..., None], *args: Any) -> None:
        """Call ``method(bk, *args)`` directly, or as Python code that a recorder must keep."""
        if self.replayable:
            method(bk, *args)
        else:
            bk.python(method, *args)


def describe(value: Any) -> Any:
    """A constructor argument as JSON holds it."""
    if isinstance(value, activations.Activation):
        return str(value)
    if isinstance(value, Layer):
        return {"class": type(value).__name__, "config": value.config()}
    if isinstance(value, (list, tuple)):
        return [describe(each) for each in value]
    config = getattr(value, "config", None)
    if config is not None:
        return config() if callable(config) else config
    return value


def rows(x: Array) -> Array:
    """`x` as a matrix: all axes but the last become rows. A view, since buffers are contiguous."""
    return x if x.ndim == 2 else x.reshape(-1, x.shape[-1])


def pixels(x: Array) -> Array:
    """`x` as (n, pixels, channels): all axes between the first and the last become one. A view, as :func:`rows`."""
    return x if x.ndim == 3 else x.reshape(x.shape[0], -1, x.shape[-1])


def positive_int(value: Any, what: str) -> int:
    """`value` as an int, if it is a whole number above zero."""
    return integer(value, what, 1)


def integer(value: Any, what: str, least: int) -> int:
    """`value` as an int, if it is a whole number of at least `least`."""
    import operator

    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{what} must be an integer, not {type(value).__name__}") from None
    if number < least:
        raise ValueError(f"{what} must be at least {least}, got {number}")
    return number
