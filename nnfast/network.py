"""What every container of layers has: weights on a device, their names, a description, a file."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from . import devices, losses, optimizers, random
from .backends.base import Backend
from .backends.numpy_backend import NumpyBackend
from .errors import NotBuiltError
from .kernels import step_state as S
from .layers import Dense, Layer
from .layers.base import Shape, positive_int
from .layers.graph import Built, build_chain, names_of_outputs, outputs_of
from .parameters import Parameters
from .plan_layout import input_dtypes
from .plan_pool import PlanPool
from .precision import checked_dtype
from .summary import Summary

__all__ = ["Network", "TrainingState"]

_UNKNOWN_INPUT = "its input size is not known; call fit, or build(in_shape), or give the first layer in_features="


# Slots of the step state that a step changes and that the next training goes on with: NAdam's running product, and the
# scale of a loss's gradient with the steps since it changed
CARRIED = (S.P4, S.LOSS_SCALE, S.GOOD_STEPS)


@dataclass
class TrainingState:
    """How far a model has been trained; saved with it.

    Attributes
    ----------
    seed : int
        Seed of shuffles and dropout masks.
    step, epoch : int
        Optimizer steps and epochs done.
    optimizer : dict or None
        ``config()`` of the last optimizer.
    carried : dict
        Values that the optimizer itself keeps in the step state, by slot.
    schedule : dict
        ``state_dict()`` of the schedule.
    """

    seed: int
    step: int = 0
    epoch: int = 0
    optimizer: dict[str, Any] | None = None
    carried: dict[int, float] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=dict)

    def config(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return {**vars(self), "carried": {str(slot): value for slot, value in self.carried.items()}}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> TrainingState:
        """What :meth:`config` gave, checked.

        Raises
        ------
        ValueError, TypeError, LookupError
            If it is anything else.
        """
        optimizer = config["optimizer"]
        if optimizer is not None and not isinstance(optimizer["name"], str):
            raise TypeError(f"the optimizer's name must be text, not {optimizer['name']!r}")
        step, epoch = int(config["step"]), int(config["epoch"])
        carried = {int(slot): float(value) for slot, value in config["carried"].items()}
        if not (0 <= step <= 2**53 and 0 <= epoch <= 2**53) or not set(carried) <= set(CARRIED):
            raise ValueError(f"step {step}, epoch {epoch} or the optimizer's values {carried} are not possible")
        seed = random.checked_seed(int(config["seed"]))
        return cls(seed, step, epoch, optimizer, carried, dict(config["schedule"]))


def _as_shapes(given: Any) -> list[Any]:
    """Shapes of inputs, from one number, one shape, or several."""
    if isinstance(given, (int, np.integer)):
        return [(given,)]
    sizes = list(given)
    several = bool(sizes) and all(isinstance(one, (list, tuple)) for one in sizes)
    return [tuple(one) for one in sizes] if several else [tuple(sizes)]


class Network:
    """A chain of layers with weights; :class:`~nnfast.model.Sequential` adds training and prediction."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        layers = list(layers)
        if not layers:
            raise ValueError(f"{type(self).__name__} needs at least one layer")
        for index, layer in enumerate(layers):
            if not isinstance(layer, Layer):
                raise TypeError(f"layer {index} must be a Layer, not {type(layer).__name__}")
        self.layers = layers
        self.loss: losses.Loss | None = None
        self.extra: dict[str, Any] = {}
        self.stop_training = False
        self.plans = PlanPool()
        self._optimizer: optimizers.Optimizer | None = None
        self._built: list[Built] = []
        self._parameters: Parameters | None = None
        self._training_state: TrainingState | None = None
        self._placed = False  # whether a device was chosen yet

    def __repr__(self) -> str:
        return f"{type(self).__name__}([{', '.join(map(repr, self.layers))}])"

    # ---- building ------------------------------------------------------------------------------------
    @property
    def is_built(self) -> bool:
        """Whether the model has weights."""
        return self._parameters is not None

    @staticmethod
    def _not_built() -> NotBuiltError:
        return NotBuiltError(f"the model has no weights yet: {_UNKNOWN_INPUT}")

    def _need_built(self) -> None:
        if self._parameters is None:
            raise self._not_built()

    # A prediction for one row takes microseconds and asks for these several times
    @property
    def built(self) -> list[Built]:
        """The layers with their shapes and declarations."""
        if self._parameters is None:
            raise self._not_built()
        return self._built

    @property
    def parameters(self) -> Parameters:
        """The weights, on their device."""
        if self._parameters is None:
            raise self._not_built()
        return self._parameters

    @property
    def training_state(self) -> TrainingState:
        """How far the model has been trained."""
        self._need_built()
        assert self._training_state is not None
        return self._training_state

    @training_state.setter
    def training_state(self, state: TrainingState) -> None:
        self._training_state = state

    @property
    def in_shapes(self) -> list[Shape]:
        """Shape of one row of each input."""
        self._need_built()
        return self._in_shapes

    @property
    def in_shape(self) -> Shape:
        """Shape of one row of the only, or the first, input."""
        return self.in_shapes[0]

    @property
    def number_of_inputs(self) -> int:
        """Arrays that the model takes."""
        return 1

    @property
    def takes_indices(self) -> bool:
        """Whether inputs are indices, such as numbers of words."""
        self._need_built()
        return self._takes_indices

    @property
    def out_shapes(self) -> list[Shape]:
        """Shape of one row of each output."""
        return [node.out_shape for node in outputs_of(self.built)]

    @property
    def out_shape(self) -> Shape:
        """Shape of one row of the only, or the first, output."""
        return self.out_shapes[0]

    @property
    def output_names(self) -> list[str]:
        """Name of each output: that of the layer that gives it."""
        return names_of_outputs(self.built)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the weights and, where :attr:`precision` says nothing else, of the computation."""
        return self.parameters.dtype

    @property
    def device(self) -> str:
        """Where the weights are."""
        return self.parameters.backend.device

    @property
    def precision(self) -> str:
        """What the computation may round: that of the last fit; see :mod:`nnfast.precision`."""
        return self.parameters.precision

    def nodes(self, in_shapes: Sequence[Shape]) -> list[Built]:
        """The layers, at their places, for inputs of these shapes.

        Raises
        ------
        ValueError
            From a layer that cannot take its input, with the layer named.
        """
        if len(in_shapes) != 1:
            raise ValueError(f"a chain of layers takes one input, got {len(in_shapes)}")
        return build_chain(self.layers, in_shapes[0])

    def known_in_shapes(self) -> list[Shape] | None:
        """Shape of one row of each input as the layers say it, where they do."""
        first = self.layers[0]
        shape = first.in_shape if isinstance(first, Dense) else None
        return None if shape is None else [shape]

    def description(self) -> dict[str, Any]:
        """What there is to say besides the layers, ready for JSON."""
        return {}

    def build(
        self,
        in_shape: int | Shape | Sequence[Shape] | None = None,
        *,
        seed: int | None = None,
        dtype: Any = "float32",
        initialise: bool = True,
    ) -> Self:
        """Give the model weights for inputs of a shape; anything it had is forgotten.

        Parameters
        ----------
        in_shape : int or tuple of int, optional
            Shape of one input row, or of each input; by default the first layer's `in_features`.
        seed : int, optional
            Of the initial weights, and of shuffles and dropout in training.
        dtype : {"float32", "float64"}
            Of the weights.
        initialise : bool
            Whether to draw weights; otherwise they are zero.

        Returns
        -------
        Self
            The model itself.
        """
        shapes = self.known_in_shapes() if in_shape is None else _as_shapes(in_shape)
        if shapes is None:
            raise NotBuiltError(_UNKNOWN_INPUT)
        built = self.nodes([tuple(positive_int(n, "each number of in_shape") for n in shape) for shape in shapes])
        parameters = Parameters(built, NumpyBackend(), checked_dtype(dtype))
        number = random.checked_seed(seed)
        if initialise:
            parameters.initialise(number)
        self._built, self._parameters = built, parameters
        # A prediction asks for these each time
        pairs = [pair for node in built for pair in zip(node.inputs, node.in_shapes, strict=True)]
        found = {source: shape for source, shape in pairs if source < 0}
        self._in_shapes = [found[-1 - k] for k in range(self.number_of_inputs)]
        self._takes_indices = np.int64 in input_dtypes(built, parameters.dtype)
        self._training_state = TrainingState(number)
        self._placed = False
        self.plans = PlanPool()
        return self

    def prepare(self, in_shape: Sequence[Shape], seed: int | None, dtype: Any) -> None:
        """Build if that has not happened; later on a seed only sets that of shuffles and dropout."""
        if not self.is_built:
            self.build(in_shape, seed=seed, dtype=dtype)
        elif seed is not None:
            self.training_state.seed = random.checked_seed(seed)

    @contextmanager
    def unbuilt_on_error(self) -> Iterator[None]:
        """If the block fails, a model that it built is not built again: bad data leave no trace."""
        built = self.is_built
        seed = self.training_state.seed if built else 0
        try:
            yield
        except BaseException:
            if built:
                self.training_state.seed = seed
            else:
                self._built, self._parameters, self._training_state = [], None, None
            raise

    @contextmanager
    def unchanged_on_error(self) -> Iterator[None]:
        """If the block fails, such as for lack of memory, the model is what it was, where it was."""
        kept = copy.deepcopy(self.training_state), self.loss, self._optimizer, self._placed
        with self.parameters.unchanged_on_error():
            try:
                yield
            except BaseException:
                self._training_state, self.loss, self._optimizer, self._placed = kept
                raise

    @property
    def last_optimizer(self) -> Any:
        """What the model was trained with, perhaps before it was saved; at first Adam."""
        saved = self._training_state.optimizer if self._training_state else None
        return self._optimizer or saved or "adam"

    def remember(self, loss: losses.Loss, optimizer: optimizers.Optimizer) -> None:
        """Note what the model is trained with."""
        self.loss, self._optimizer, self._placed = loss, optimizer, True

    def place(self, device: str | Backend | None = None) -> Backend:
        """Bring the weights to a device; by default they stay where a fit brought them.

        Returns
        -------
        Backend
        """
        parameters = self.parameters
        if device is not None or not self._placed:
            backend = devices.get_backend(device)
            if backend is not parameters.backend:
                parameters.move(backend, parameters.dtype)
            self._placed = True
        return parameters.backend

    def reset_states(self) -> None:
        """Let stateful layers begin anew in the next prediction; a fit does so at the beginning of each epoch."""
        self.plans.reset_states()

    # ---- weights -----------------------------------------------------------------------------------------
    def get_weights(self) -> dict[str, np.ndarray]:
        """Copies of all parameters and buffers, named ``layer.array``."""
        return self.parameters.get()

    def set_weights(self, weights: Mapping[str, Any]) -> None:
        """Write all parameters and buffers, or, if anything does not fit, none of them."""
        self.parameters.set(dict(weights))

    def get_flat_weights(self) -> np.ndarray:
        """All parameters as one vector, without the buffers."""
        return self.parameters.vector()

    def set_flat_weights(self, values: Any) -> None:
        """Write what :meth:`get_flat_weights` gave."""
        self.parameters.set_vector(values)

    @contextmanager
    def averaged(self) -> Iterator[Self]:
        """Within the block the model has the moving average of its weights (an optimizer with `ema`)."""
        params = self.parameters
        if params.average is None:
            raise ValueError("there is no moving average; train with an optimizer that has ema=, such as 0.999")
        # Copies, not a swap of the arrays: plans hold their addresses
        before = params.vector()
        params.load_average()
        try:
            yield self
        finally:
            params.set_vector(before)

    # ---- description, files --------------------------------------------------------------------------------
    def summary(self, batch_size: int = 32, device: str | Backend | None = None) -> Summary:
        """Layers, shapes, parameters, and the memory of a training plan; prints as a table.

        Nothing is allocated, and the weights stay where they are.

        Parameters
        ----------
        batch_size : int
            That the plan is made for.
        device : str or Backend, optional
            Where it would train: the table then has a line with all that this takes, and what is free there.

        Raises
        ------
        DeviceUnavailable
            If the device was named and cannot be used.
        """
        backend = None if device is None else devices.get_backend(device)
        return Summary(self.built, self.parameters, positive_int(batch_size, "batch_size"), backend)

    @classmethod
    def described(cls, layers: Sequence[Layer], description: Mapping[str, Any]) -> Network:
        """A model of layers, by what :meth:`description` gave."""
        return cls(layers)

    def like(self, layers: Sequence[Layer]) -> Self:
        """A model of other layers at the same places, without weights."""
        return type(self)(layers)

    def copy(self) -> Self:
        """An independent copy, weights and training state included."""
        other = self.like(copy.deepcopy(self.layers))  # at once: what is shared stays so
        other.loss, other.extra, other._optimizer = copy.deepcopy((self.loss, self.extra, self._optimizer))
        if self.is_built:
            other.build(self.in_shapes, dtype=self.dtype, initialise=False)
            other.parameters.move(other.parameters.backend, self.dtype, self.precision)
            other.parameters.set(self.get_weights())
            if slots := self.parameters.get_slots():
                other.parameters.set_slots(slots)
            other.training_state = copy.deepcopy(self.training_state)
        return other
