"""The model as its user sees it: build, fit, predict, evaluate, save."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from . import devices, losses, optimizers
from .backends.base import Backend
from .joint_loss import of_outputs
from .layers import Layer
from .layers.base import Shape, positive_int
from .layers.graph import Built, names_of_outputs
from .layers.symbolic import Calls, Tensor
from .network import Network
from .plan import without_link
from .precision import resolve
from .training import checkpoint, data, loop
from .training.callbacks import Callback, check_callbacks
from .training.history import History
from .training.inference import forward
from .training.output_metrics import metrics_of_outputs
from .training.predictions import classes, through_link
from .training.validation import Validation

__all__ = ["Model", "Sequential", "load"]


class Model(Network):
    """Layers as calls on one another: what leads from an input to an output.

    Parameters
    ----------
    inputs : Tensor or sequence of Tensor
        What :func:`nnfast.Input` gave. A model with several takes a list of arrays for `X`.
    outputs : Tensor or sequence of Tensor
        What layers gave that were called on them, or on what others gave. A model with several takes lists of targets
        and losses, and ``predict`` returns a list; :attr:`output_names` are those of the layers.

    Attributes
    ----------
    layers : list of Layer
        Each one once; one that is called several times has the same weights each time.
    loss : Loss or None
        The loss of the last ``fit``.
    extra : dict
        JSON that is saved with the model, such as the preprocessing of its inputs.
    stop_training : bool
        Set by a callback to end a fit.

    Examples
    --------
    >>> import nnfast as nf
    >>> x = nf.Input(4)
    >>> h = nf.Dense(8, "relu")(x)
    >>> model = nf.Model(x, nf.Dense(2)(nf.Concat()(x, h)))
    """

    calls: Calls | None = None

    def __init__(self, inputs: Tensor | Sequence[Tensor], outputs: Tensor | Sequence[Tensor]) -> None:
        ends: list[list[Tensor]] = []
        for what, given in (("inputs", inputs), ("outputs", outputs)):
            tensors: list[Any] = list(given) if isinstance(given, (list, tuple)) else [given]
            for one in tensors:
                if not isinstance(one, Tensor):
                    raise TypeError(f"Model: {what} must be tensors that begin at nf.Input, not {type(one).__name__}")
            ends.append(tensors)
        self._follow(Calls.between(*ends))

    def _follow(self, calls: Calls) -> None:
        super().__init__(calls.layers)
        self.calls = calls
        self.nodes(calls.in_shapes)  # so that what does not fit is said now

    @classmethod
    def described(cls, layers: Sequence[Layer], description: Mapping[str, Any]) -> Model:
        """A model of layers, by what :meth:`description` gave."""
        graph = description.get("graph")
        if graph is None:
            return Sequential(layers)
        shapes = [tuple(int(n) for n in shape) for shape in graph["in_shapes"]]
        calls = [(int(layer), [int(source) for source in sources]) for layer, sources in graph["calls"]]
        model = Model.__new__(Model)
        model._follow(Calls(shapes, list(layers), calls, [int(out) for out in graph["outputs"]]))
        return model

    def description(self) -> dict[str, Any]:
        return {} if self.calls is None else {"graph": self.calls.config()}

    @property
    def number_of_inputs(self) -> int:
        return 1 if self.calls is None else len(self.calls.in_shapes)

    def nodes(self, in_shapes: Sequence[Shape]) -> list[Built]:
        if self.calls is None:
            return super().nodes(in_shapes)
        expected, given = (", ".join(map(str, shapes)) for shapes in (self.calls.in_shapes, in_shapes))
        if expected != given:
            raise ValueError(f"the model was made for inputs of shape {expected}, not {given}")
        return self.calls.nodes()

    def known_in_shapes(self) -> list[Shape] | None:
        return super().known_in_shapes() if self.calls is None else self.calls.in_shapes

    @property
    def output_names(self) -> list[str]:
        """Name of each output: that of the layer that gives it; a graph has them before it is built."""
        return super().output_names if self.calls is None else names_of_outputs(self.calls.nodes())

    def like(self, layers: Sequence[Layer]) -> Self:
        """A model of other layers at the same places, without weights."""
        if self.calls is None:
            return super().like(layers)
        other = type(self).__new__(type(self))
        other._follow(Calls(self.calls.in_shapes, list(layers), self.calls.calls, self.calls.outputs))
        return other

    # ---- training --------------------------------------------------------------------------------------
    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        loss: str | losses.Loss | Sequence[Any] | None = None,
        optimizer: Any = None,
        epochs: int = 1,
        batch_size: int = 32,
        device: str | Backend = "auto",
        dtype: Any = None,
        precision: str | None = None,
        validation_data: Any = None,
        validation_split: float = 0.0,
        shuffle: bool = True,
        sample_weight: Any = None,
        class_weight: Mapping[Any, float] | str | None = None,
        metrics: Any = (),
        callbacks: Sequence[Callback] = (),
        seed: int | None = None,
        verbose: int = 1,
        resume: str | os.PathLike[str] | None = None,
    ) -> History:
        """Train the model; called again, it goes on from where it stood.

        Parameters
        ----------
        X : array_like or iterable of batches
            (n, *in_shape): a NumPy, CuPy, pandas, polars or PyTorch object, a memory-mapped file; or, with no
            `y`, an iterable of ``(x, y)`` or ``(x, y, sample_weight)``.
        y : array_like, optional
            Targets, as the loss takes them.
        loss : str, Loss or list of these
            See :mod:`nnfast.losses`; by default that of the last fit. One for all outputs of a model that has several,
            or a list of one each; :class:`~nnfast.JointLoss` gives them weights.
        optimizer : str or Optimizer
            See :mod:`nnfast.optimizers`; by default that of the last fit, and Adam in the first.
        epochs : int
            Passes over the data.
        batch_size : int
            Rows of a step; the last batch of an epoch may be smaller.
        device : str or Backend
            ``"numpy"``, ``"numba"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"auto"``.
        dtype : {"float32", "float64"}, optional
            Of the weights and the computation; by default that of `precision`.
        precision : {"float32", "tf32", "bf16", "fp16", "float64"}, optional
            What the computation may round; by default that of `dtype`, or float32. ``"tf32"`` lets a GPU's tensor
            cores do the products. It stays with the model, also for predictions.
        validation_data : tuple of array_like, optional
            ``(X, y)`` or ``(X, y, sample_weight)``, evaluated after each epoch.
        validation_split : float
            Share of the rows that is held out at random for validation instead.
        shuffle : bool
            Whether each epoch has an order of its own.
        sample_weight : array_like, optional
            (n,), not negative.
        class_weight : dict or "balanced", optional
            Factor on the weight of each class's rows.
        metrics : str, callable, sequence or mapping
            See :mod:`nnfast.metrics`; computed for each epoch's training and validation rows. One list is for every
            output of a model that has several; lists in a list, one for each output, or a mapping from
            :attr:`output_names` to a metric or a list of them tell them apart. The history then has the curves
            ``<output>_<metric>`` and ``val_<output>_<metric>``.
        callbacks : sequence of Callback
            See :mod:`nnfast.training.callbacks`.
        seed : int, optional
            One seed gives the same initial weights, shuffles and dropout masks on every backend.
        verbose : int
            0 is silent, 1 shows a bar on a terminal and lines elsewhere, 2 always lines.
        resume : path_like, optional
            A file of :class:`~nnfast.TrainingCheckpoint`: the fit that wrote it goes on, from the step that it was at.
            Data and arguments must be those of that fit; on the same backend with as many threads the result is the
            same to the last bit.

        Returns
        -------
        History
            Curves of the loss and the metrics. Ctrl-C ends training after the current step, with a warning.

        Raises
        ------
        ValueError, TypeError
            If the data, or anything else, do not fit; nothing has changed then.
        DeviceUnavailable
            If the device was named and cannot be used.
        NonFiniteError
            If the loss stops being finite; the weights are those from before.
        """
        if loss is None and self.loss is None:
            raise TypeError("fit needs loss=, such as 'cross_entropy' or 'mean_squared_error'")
        resolved_loss = self._loss_of(self.loss if loss is None else loss)
        resolved_optimizer = optimizers.get(self.last_optimizer if optimizer is None else optimizer)
        check_callbacks(callbacks)
        precision, dtype = resolve(precision, dtype)
        backend = devices.get_backend(device)
        return loop.fit(
            self,
            X,
            y,
            loss=resolved_loss,
            optimizer=resolved_optimizer,
            epochs=positive_int(epochs, "epochs"),
            batch_size=positive_int(batch_size, "batch_size"),
            backend=backend,
            dtype=dtype,
            precision=precision,
            validation_data=validation_data,
            validation_split=validation_split,
            shuffle=shuffle,
            sample_weight=sample_weight,
            class_weight=class_weight,
            metrics=metrics,
            callbacks=callbacks,
            seed=seed,
            verbose=verbose,
            resume=resume,
        )

    def _loss_of(self, loss: Any) -> losses.Loss:
        """The loss that was asked for, one for each output."""
        outputs = 1 if self.calls is None else len(self.calls.outputs)
        return of_outputs(loss, outputs)

    # ---- inference -------------------------------------------------------------------------------------
    def _inputs(self, X: Any, device: str | Backend | None) -> Any:
        in_shapes = self.in_shapes  # or an error, where the model has no weights
        backend = self.place(device)
        X = data.as_inputs(X, self.number_of_inputs, "X", None if backend.xp is np else backend.asarray)
        data.check_inputs(X, in_shapes)
        return data.with_indices(X, self.built, "X") if self.takes_indices else X

    def predict(
        self,
        X: Any,
        *,
        batch_size: int | None = None,
        device: str | Backend | None = None,
        on_device: bool = False,
    ) -> Any:
        """The outputs of the last layer, chunk by chunk.

        Parameters
        ----------
        X : array_like
            (n, *in_shape); n may be 0.
        batch_size : int, optional
            Rows of a chunk; by default what keeps the activations within some 32 MB.
        device : str or Backend, optional
            By default where the weights are.
        on_device : bool
            Leave the outputs there: a CuPy array where that is a GPU, which other libraries take without a copy, such
            as ``torch.from_dlpack``.

        Returns
        -------
        ndarray or array
            (n, *out_shape). For a model whose last layer is linear these are logits, or values; see
            :meth:`predict_proba`.
        """
        parameters = self.parameters
        as_before = batch_size is None and not on_device and device in (None, parameters.backend.device)
        if as_before and (again := self.plans.again(X, parameters)) is not None:
            return again
        X = self._inputs(X, device)
        batch_size = None if batch_size is None else positive_int(batch_size, "batch_size")
        outputs, _ = forward(self, X, batch_size=batch_size, on_device=on_device)
        assert outputs is not None
        return outputs

    def _link(self) -> str | None:
        """What the outputs still need to be probabilities."""
        if self.loss is None or without_link(self.built, self.loss) is not self.built:
            return None  # the last layer applies it
        return self.loss.link

    def predict_proba(
        self, X: Any, *, batch_size: int | None = None, device: str | Backend | None = None
    ) -> np.ndarray:
        """Probabilities (or rates, after the Poisson loss): :meth:`predict`, through the loss's link.

        Returns
        -------
        ndarray
            (n, *out_shape).
        """
        return through_link(self._link(), self.predict(X, batch_size=batch_size, device=device))

    def predict_classes(
        self, X: Any, *, batch_size: int | None = None, device: str | Backend | None = None
    ) -> np.ndarray:
        """The class of each row, int64 (n,).

        The largest of several outputs; for a single one, whether it is above 0.5 (as a probability), or
        above 0 after the hinge loss.
        """
        hinge = isinstance(self.loss, losses.Hinge)
        proba = self.predict_proba(X, batch_size=batch_size, device=device)
        return classes(proba, 0.0 if hinge else 0.5)

    def evaluate(
        self,
        X: Any,
        y: Any,
        *,
        loss: str | losses.Loss | None = None,
        metrics: Any = (),
        sample_weight: Any = None,
        batch_size: int | None = None,
        device: str | Backend | None = None,
    ) -> dict[str, float]:
        """Loss and metrics of the model on some data.

        Parameters
        ----------
        X, y, sample_weight
            As for :meth:`fit`.
        loss : str or Loss, optional
            By default that of the last fit.
        metrics : str, callable, sequence or mapping
            As for :meth:`fit`.
        batch_size, device
            As for :meth:`predict`.

        Returns
        -------
        dict
            ``{"loss": ..., metric: ...}``; metrics of several outputs are named as in a history.
        """
        if loss is None and self.loss is None:
            raise TypeError("evaluate needs loss=, since the model has not been fitted")
        self._need_built()
        self.place(device)
        resolved = self._loss_of(self.loss if loss is None else loss)
        wanted = metrics_of_outputs(self, resolved, metrics)
        return Validation(
            self, X, y, sample_weight, resolved, wanted, self.dtype, self.parameters.activations
        ).evaluate(self, batch_size)

    # ---- files --------------------------------------------------------------------------------------------
    def save(self, path: str | os.PathLike[str], extra: Mapping[str, Any] | None = None) -> None:
        """Write the model, its training state and `extra` to a safetensors file, whole or not at all.

        Parameters
        ----------
        path : path_like
            The file.
        extra : mapping, optional
            JSON to keep with the model; by default :attr:`extra`.

        Raises
        ------
        OSError
            If the file cannot be written; what was there before is untouched.
        TypeError
            If a layer's configuration or `extra` is not JSON.
        """
        checkpoint.save(self, path, extra)

    def export_onnx(
        self, path: str | os.PathLike[str], *, opset: int = 17, probabilities: bool = False, preprocessing: Any = None
    ) -> None:
        """Write the model as an ONNX file, for other runtimes; see :func:`nnfast.interop.onnx.export`.

        Parameters
        ----------
        path : path_like
            The file.
        opset : int
            Version of ONNX's operators, 17 to 21.
        probabilities : bool
            Whether the output is that of :meth:`predict_proba`, not of :meth:`predict`.
        preprocessing : Preprocessor, optional
            Made part of the graph.

        Raises
        ------
        NotBuiltError
            If the model has no weights.
        ValueError
            If `opset` is another one, or a layer has no counterpart in ONNX.
        ImportError
            If the package ``onnx`` is not installed.
        OSError
            If the file cannot be written; what was there before is untouched.
        """
        from .exporting import onnx

        onnx.export(self, path, opset=opset, probabilities=probabilities, preprocessing=preprocessing)


class Sequential(Model):
    """A chain of layers.

    Parameters
    ----------
    layers : sequence of Layer
        Each one's output is the next one's input; blocks such as :class:`~nnfast.Residual` are layers, too.

    Attributes
    ----------
    layers : list of Layer
        The chain.
    loss : Loss or None
        The loss of the last ``fit``.
    extra : dict
        JSON that is saved with the model, such as the preprocessing of its inputs.
    stop_training : bool
        Set by a callback to end a fit.

    Examples
    --------
    >>> import nnfast as nf
    >>> model = nf.Sequential([nf.Dense(8, "tanh"), nf.Dense(1, "sigmoid")])
    >>> X, y = [[0, 0], [0, 1], [1, 0], [1, 1]], [0, 1, 1, 0]
    >>> history = model.fit(
    ...     X, y, loss="binary_cross_entropy", optimizer=nf.Adam(0.1), epochs=100, seed=0, device="cpu", verbose=0
    ... )
    >>> model.predict_classes(X)
    array([0, 1, 1, 0])
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        Network.__init__(self, layers)


def load(
    path: str | os.PathLike[str], *, custom: Mapping[str, Any] | None = None, device: str | Backend | None = None
) -> Model:
    """Read a model that ``model.save`` wrote. No code in the file is run.

    Parameters
    ----------
    path : path_like
        The file.
    custom : mapping, optional
        The user's own layers and losses, by class name.
    device : str or Backend, optional
        Where the weights go; by default ``"auto"``, at the first use.

    Returns
    -------
    Model
        A :class:`Sequential` where it was one.

    Raises
    ------
    CheckpointError
        If the file is damaged, of an unknown version, or names a class that is not known.
    FileNotFoundError
        If there is no such file.
    """
    model = checkpoint.load(Model, path, custom)
    if device is not None:
        model.place(device)
    return model
