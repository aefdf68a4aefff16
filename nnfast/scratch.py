"""The class that "a neural network from scratch in NumPy" tutorials write, on nnfast's backends."""

from __future__ import annotations

import time
from math import isfinite
from typing import Any

import numpy as np

from . import random
from .arena import Arena
from .backends.base import Array, Backend, Replay
from .devices import get_backend
from .errors import NonFiniteError
from .kernels import step_state as S

__all__ = ["NeuralNetwork"]

_MAX_RUN = 4096  # epochs between two looks at the host: bounds the table of learning rates
_RESPONSE = 0.05  # seconds: how long a run of epochs may leave Ctrl-C waiting


def _parameter(name: str) -> property:
    """A weight or bias as an attribute; biases are (1, n) outside and (n,) inside."""

    def read(self: NeuralNetwork) -> np.ndarray:
        array = self._param[name]
        array = array if array.ndim == 2 else array.reshape(1, -1)
        host = self._bk.to_numpy(array)
        if host is not array:
            host.flags.writeable = False
        return host

    def write(self: NeuralNetwork, value: Any) -> None:
        slot = self._param[name]
        shape = slot.shape if slot.ndim == 2 else (1, *slot.shape)
        self._bk.copy(self._checked(name, value, shape).reshape(slot.shape), out=slot)

    return property(read, write)


def _activation(name: str) -> property:
    """``z`` or ``a`` of the last feedforward as an attribute."""

    def read(self: NeuralNetwork) -> np.ndarray:
        host = np.array(self._bk.to_numpy(self._fed_batch(name)))
        host.flags.writeable = False
        return host

    def write(self: NeuralNetwork, value: Any) -> None:
        slot = self._fed_batch(name)
        self._bk.copy(self._checked(name, value, slot.shape), out=slot)
        self._edited = True

    return property(read, write)


class NeuralNetwork:
    """Two layers of sigmoid units, trained on the squared error by full-batch gradient descent.

    A drop-in for the tutorials' class: the same constructor, methods, attributes and formulas. With
    ``z_1 = X @ weights_1 + bias_1``, ``a_1 = sigmoid(z_1)`` and likewise for the second layer, one step is ::

        delta_2 = (y - a_2) * sigmoid'(z_2)
        delta_1 = delta_2 @ weights_2.T * sigmoid'(z_1)
        weights_2 += learning_rate * a_1.T @ delta_2;    bias_2 += learning_rate * delta_2.sum(0)
        weights_1 += learning_rate * X.T @ delta_1;      bias_1 += learning_rate * delta_1.sum(0)

    Parameters
    ----------
    input_size, hidden_size, output_size : int
        Number of inputs, hidden units and outputs.
    device : str or Backend
        As for :func:`nnfast.get_backend`.
    dtype : {"float64", "float32"}
        Type of the weights and of all computation.
    seed : int, optional
        Seed of the initial weights. Without it they come from ``np.random``, ``weights_1`` first, as the
        tutorials draw them, so that ``np.random.seed`` has the same effect.

    Attributes
    ----------
    weights_1, weights_2 : ndarray, (input_size, hidden_size) and (hidden_size, output_size)
        Standard normal at first.
    bias_1, bias_2 : ndarray, (1, hidden_size) and (1, output_size)
        Zero at first.
    z_1, a_1, z_2, a_2 : ndarray, (n, hidden_size) and (n, output_size)
        Of the last :meth:`feedforward`.

    All of them can be assigned to. On the CPU the weights and biases can also be changed in place; what
    is a copy (they on a GPU, and ``z`` and ``a``) is read-only, so that no change is lost in silence.

    Examples
    --------
    >>> X = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    >>> y = np.array([[0], [1], [1], [0]])
    >>> net = NeuralNetwork(2, 4, 1, device="numpy", seed=0)
    >>> net.train(X, y, epochs=5000, learning_rate=1.0, verbose=0)
    >>> net.feedforward(X).round().ravel()
    array([0., 1., 1., 0.])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        *,
        device: str | Backend = "cpu",
        dtype: Any = "float64",
        seed: int | None = None,
    ) -> None:
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "output_size": output_size}
        for key, value in sizes.items():
            if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
                raise TypeError(f"{key} must be an int, not {type(value).__name__}")
            if value < 1:
                raise ValueError(f"{key} must be at least 1, got {value}")
        self.input_size, self.hidden_size, self.output_size = int(input_size), int(hidden_size), int(output_size)
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.float64, np.float32):
            raise ValueError(f"dtype must be float64 or float32, got {self.dtype}")
        self._bk = get_backend(device)
        self._allocate()
        for index, name in enumerate(("weights_1", "weights_2")):
            shape = self._param[name].shape
            if seed is None:
                values = np.random.standard_normal(shape)  # noqa: NPY002 - what np.random.seed seeds, as documented
            else:
                values = random.generator(seed, random.INIT, index).standard_normal(shape)
            setattr(self, name, values)

    def __repr__(self) -> str:
        sizes = f"{self.input_size}, {self.hidden_size}, {self.output_size}"
        return f"NeuralNetwork({sizes}, device={self.device!r}, dtype={self.dtype.name!r})"

    @property
    def device(self) -> str:
        """The device that it runs on."""
        return self._bk.device

    # ---- memory ------------------------------------------------------------------------------------------
    def _allocate(self) -> None:
        arena = Arena()
        shapes = {
            "weights_1": (self.input_size, self.hidden_size),
            "bias_1": (self.hidden_size,),
            "weights_2": (self.hidden_size, self.output_size),
            "bias_2": (self.output_size,),
        }
        slots = {name: arena.reserve(shape, self.dtype) for name, shape in shapes.items()}
        # One flat array each, so that the update is one call; the gaps of the alignment stay zero
        buffers = [self._bk.zeros(arena.nbytes, np.uint8) for _ in range(2)]
        self._flat_param, self._flat_grad = (buffer.view(self.dtype) for buffer in buffers)
        self._param, self._grad = ({name: Arena.view(b, slot) for name, slot in slots.items()} for b in buffers)
        self._state = self._bk.zeros(S.SIZE, np.float64)
        self._lr_table = self._bk.zeros(_MAX_RUN, np.float64)
        self._batch: dict[str, Array] = {}
        self._replay: Replay | None = None
        self._rows = 0
        self._fed = False
        self._edited = False

    def _fit_batch(self, n: int) -> None:
        """Buffers for `n` rows; those of the last call where it had as many."""
        if self._rows == n:
            return
        sizes = {"x": self.input_size, "y": self.output_size}
        sizes |= dict.fromkeys(("z_1", "a_1", "s_1", "d_1"), self.hidden_size)
        sizes |= dict.fromkeys(("z_2", "a_2", "s_2", "d_2"), self.output_size)
        self._batch = {name: self._bk.zeros((n, m), self.dtype) for name, m in sizes.items()}
        self._rows, self._replay, self._fed = n, None, False

    # ---- input -------------------------------------------------------------------------------------------
    def _matrix(self, value: Any, what: str, columns: int) -> np.ndarray:
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"{what} must hold real numbers, not dtype {array.dtype}")
        if array.ndim == 1:
            # One sample for X, as np.dot takes it; one value per sample for a single output
            array = array[:, None] if what == "y" and columns == 1 else array[None, :]
        if array.ndim != 2 or array.shape[1] != columns:
            raise ValueError(f"{what} must have shape (n, {columns}), got {np.shape(value)}")
        if len(array) == 0:
            raise ValueError(f"{what} is empty: shape {np.shape(value)}")
        if not np.isfinite(array).all():
            raise ValueError(f"{what} holds NaN or infinite values")
        return np.ascontiguousarray(array, self.dtype)

    @staticmethod
    def _rate(learning_rate: Any) -> float:
        rate = float(learning_rate)
        if not isfinite(rate):
            raise ValueError(f"learning_rate must be finite, got {rate!r}")
        return rate

    def _targets(self, y: Any, rows: int) -> np.ndarray:
        y = self._matrix(y, "y", self.output_size)
        if len(y) != rows:
            raise ValueError(f"X has {rows} rows and y has {len(y)}")
        return y

    # ---- the maths ---------------------------------------------------------------------------------------
    def _forward(self, bk: Backend) -> None:
        b = self._batch
        for k, x in ((1, b["x"]), (2, b["a_1"])):
            W, bias = self._param[f"weights_{k}"], self._param[f"bias_{k}"]
            bk.linear_act(x, W, bias, "sigmoid", out=b[f"a_{k}"], saved=b[f"z_{k}"])

    def _backward(self, bk: Backend, s_1: Array, s_2: Array) -> None:
        """One update; `s_1`, `s_2` are sigmoid(z_1), sigmoid(z_2), which the derivative is computed from."""
        b = self._batch
        bk.begin_step(self._state, self._lr_table)
        bk.elementwise_loss("mean_squared_error", b["a_2"], b["y"], None, self._state, dpred=b["d_2"])
        bk.record_loss(self._state)
        layers = ((2, b["d_2"], b["a_1"], s_2, b["d_1"]), (1, b["d_1"], b["x"], s_1, None))
        for k, dy, x, saved, dx in layers:
            W = self._param[f"weights_{k}"]
            dW, db = self._grad[f"weights_{k}"], self._grad[f"bias_{k}"]
            bk.linear_act_grad(dy, x, W, saved, "sigmoid", dx=dx, dW=dW, db=db)
        bk.sgd_step(self._flat_param, self._flat_grad, None, self._state, nesterov=False)

    def _step(self, bk: Backend) -> None:
        self._forward(bk)
        self._backward(bk, self._batch["a_1"], self._batch["a_2"])

    def _set_rate(self, rate: float, first_step: int = 0) -> None:
        # The loss is the mean over the n * m elements of (a - y)**2, and its gradient 2 (a - y) / (n m);
        # the tutorials' update is the sum of (y - a). The factor between the two goes into the rate.
        self._bk.fill(self._lr_table, rate * self._rows * self.output_size / 2.0)
        self._restart(first_step)

    def _restart(self, step: int) -> None:
        """Go on from step number `step`, at the start of the table of learning rates."""
        state = np.zeros(S.SIZE)
        state[S.STEP] = step
        self._bk.copy(state, out=self._state)

    def _loss(self, what: str) -> float:
        """The loss of the last step; raises if one was not finite."""
        state = self._bk.to_numpy(self._state)
        if state[S.BAD_STEP]:
            step = int(state[S.BAD_STEP])
            raise NonFiniteError(
                f"the loss or an update stopped being finite in {what} {step}; the weights kept are finite. "
                "Try a smaller learning_rate.",
                step,
            )
        return float(state[S.LOSS])

    # ---- what the tutorials call ---------------------------------------------------------------------------
    def feedforward(self, X: Any) -> np.ndarray:
        """The outputs for `X`.

        Parameters
        ----------
        X : array_like, (n, input_size), or (input_size,) for one sample

        Returns
        -------
        ndarray, (n, output_size)
            A new array, equal to ``a_2``.

        Raises
        ------
        ValueError
            If the shape does not fit, or values are not finite.
        """
        X = self._matrix(X, "X", self.input_size)
        self._fit_batch(len(X))
        self._bk.copy(X, out=self._batch["x"])
        self._forward(self._bk)
        self._fed, self._edited = True, False
        return np.array(self._bk.to_numpy(self._batch["a_2"]))

    def backpropagation(self, X: Any, y: Any, learning_rate: float) -> None:
        """One update of the weights, from the activations of the last :meth:`feedforward`.

        Parameters
        ----------
        X : array_like, (n, input_size)
            What :meth:`feedforward` was given.
        y : array_like, (n, output_size)
            The outputs that are wanted; (n,) also for one output.
        learning_rate : float
            Factor of the gradients, which are summed over the rows.

        Raises
        ------
        RuntimeError
            If :meth:`feedforward` was not called before.
        ValueError
            If shapes do not fit, or values are not finite.
        NonFiniteError
            If the loss or the update is not finite; the weights stay finite.
        """
        X, rate = self._matrix(X, "X", self.input_size), self._rate(learning_rate)
        y = self._targets(y, len(X))
        if not self._fed:
            raise RuntimeError("backpropagation needs the activations of feedforward(X): call that first")
        if len(X) != self._rows:
            raise ValueError(f"X has {len(X)} rows, the last feedforward had {self._rows}")
        b = self._batch
        self._bk.copy(X, out=b["x"])
        self._bk.copy(y, out=b["y"])
        s_1, s_2 = b["a_1"], b["a_2"]
        if self._edited:
            # z and a were assigned to and may not belong together any more: the slope is that at z
            s_1, s_2 = b["s_1"], b["s_2"]
            self._bk.act("sigmoid", b["z_1"], out=s_1)
            self._bk.act("sigmoid", b["z_2"], out=s_2)
        self._set_rate(rate)
        with np.errstate(all="ignore"):  # what is not finite is reported by _loss
            self._backward(self._bk, s_1, s_2)
        self._loss("step")

    def train(self, X: Any, y: Any, epochs: int, learning_rate: float, verbose: int = 1) -> None:
        """Train for `epochs` steps on all of `X`, printing ``Epoch n, Loss: mean squared error``.

        Parameters
        ----------
        X : array_like, (n, input_size)
        y : array_like, (n, output_size)
            Also (n,) for one output.
        epochs : int
            Number of steps; they are counted from 1.
        learning_rate : float
            As for :meth:`backpropagation`.
        verbose : int
            Print every `verbose`-th epoch; 0 prints nothing. The loss is the one before the update.

        Raises
        ------
        ValueError
            If shapes do not fit, or values are not finite.
        NonFiniteError
            If a loss or an update is not finite; training ends there and the weights stay finite.
        """
        for key, value in (("epochs", epochs), ("verbose", verbose)):
            if not isinstance(value, (int, np.integer)):
                raise TypeError(f"{key} must be an int, not {type(value).__name__}")
            if value < 0:
                raise ValueError(f"{key} must not be negative, got {value}")
        X, rate = self._matrix(X, "X", self.input_size), self._rate(learning_rate)
        y = self._targets(y, len(X))
        if epochs == 0:
            return
        self._fit_batch(len(X))
        self._bk.copy(X, out=self._batch["x"])
        self._bk.copy(y, out=self._batch["y"])
        if self._replay is None:
            self._set_rate(0.0)  # the recording may do the step: without a rate it changes no weight
            with np.errstate(all="ignore"):
                self._replay = self._bk.capture(self._step)
        self._set_rate(rate)
        self._fed, self._edited = True, False
        done, run = 0, 1
        while done < epochs:
            to_print = verbose - done % verbose if verbose else epochs
            steps = min(run, to_print, epochs - done)
            began = time.perf_counter()
            with np.errstate(all="ignore"):  # what is not finite is reported by _loss
                self._replay.run(steps)
            loss = self._loss("epoch")
            if steps == run and time.perf_counter() - began < _RESPONSE / 2:
                run = min(2 * run, _MAX_RUN)
            done += steps
            self._restart(done)
            if verbose and done % verbose == 0:
                print(f"Epoch {done}, Loss: {loss}")

    # ---- the attributes ------------------------------------------------------------------------------------
    def _fed_batch(self, name: str) -> Array:
        if not self._fed:
            raise AttributeError(f"{name} is there after feedforward(X)")
        return self._batch[name]

    def _checked(self, name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"{name} must hold real numbers, not dtype {array.dtype}")
        if array.shape != shape:
            raise ValueError(f"{name} has shape {shape}, got {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite")
        return np.ascontiguousarray(array, self.dtype)

    weights_1 = _parameter("weights_1")
    bias_1 = _parameter("bias_1")
    weights_2 = _parameter("weights_2")
    bias_2 = _parameter("bias_2")
    z_1 = _activation("z_1")
    a_1 = _activation("a_1")
    z_2 = _activation("z_2")
    a_2 = _activation("a_2")

    # ---- copying and pickling: a recorded step holds addresses, so it is made anew ---------------------------
    def __getstate__(self) -> dict[str, Any]:
        sizes = (self.input_size, self.hidden_size, self.output_size)
        weights = {name: np.array(getattr(self, name)) for name in self._param}
        return {"sizes": sizes, "dtype": self.dtype.name, "device": self.device, "weights": weights}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.input_size, self.hidden_size, self.output_size = state["sizes"]
        self.dtype = np.dtype(state["dtype"])
        self._bk = get_backend(state["device"])
        self._allocate()
        for name, value in state["weights"].items():
            setattr(self, name, value)
