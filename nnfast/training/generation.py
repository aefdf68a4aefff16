"""Sequences that a model makes up itself, step by step, and how probable it finds those of others."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .. import random
from ..layers import (
    Activation,
    Add,
    Dense,
    Dropout,
    Embedding,
    LayerNorm,
    MultiHeadAttention,
    PositionalEmbedding,
    RMSNorm,
)
from ..layers.base import Layer, integer
from ..layers.recurrent import Recurrent

__all__ = ["bits", "generate", "unrolled"]

# Layers that take each step by itself: with recurrent ones they need to see one step at a time only
_EACH_STEP = (Activation, Add, Dense, Dropout, Embedding, LayerNorm, RMSNorm)

# Steps of a window that a recurrent model is measured on, those at its beginning that only bring it into the text, and
# windows whose outputs are in memory at a time
_LONG, _LEAD, _ROWS = 1024, 256, 32


def _layers(model: Any) -> list[Layer]:
    return [node.layer for node in model.built]


def _looks_back(layer: Layer) -> bool:
    """Whether a step of the layer's output depends on that step and those before it only."""
    if isinstance(layer, Recurrent):
        return not layer.reverse
    if isinstance(layer, MultiHeadAttention):
        return layer.causal
    return isinstance(layer, (PositionalEmbedding, *_EACH_STEP))


def goes_by_steps(model: Any) -> bool:
    """Whether all that a model knows of the steps before is in states that can be carried."""
    if model.calls is not None:  # a graph of calls is bound to its inputs' length
        return False
    layers = [layer for layer in _layers(model) if not isinstance(layer, _EACH_STEP)]
    return bool(layers) and all(isinstance(layer, Recurrent) and _looks_back(layer) for layer in layers)


def unrolled(model: Any, steps: int, *, stateful: bool) -> Any:
    """A copy of a recurrent model for sequences of another length.

    Parameters
    ----------
    model : Model
        Built, with inputs of shape (t,).
    steps : int
        Length of the copy's sequences.
    stateful : bool
        Whether a prediction begins with the states that the one before left.

    Returns
    -------
    Model
        With the same weights, on the same device.

    Raises
    ------
    ValueError
        If the model has other layers than recurrent ones and those that take each step by itself.
    """
    if not goes_by_steps(model):
        names = sorted({type(layer).__name__ for layer in _layers(model)})
        raise ValueError(f"only a chain of recurrent layers can be unrolled to other lengths, not {', '.join(names)}")
    other = model.like(copy.deepcopy(model.layers))
    for node in other.nodes([(steps,)]):
        if isinstance(node.layer, Recurrent):
            node.layer.stateful = stateful
    other.build((steps,), dtype=model.dtype, initialise=False)
    other.loss = model.loss
    other.set_weights(model.get_weights())
    other.place(model.device)
    return other


def _check(model: Any) -> tuple[int, int]:
    """Steps of the model's windows and number of its classes, where it has a class for each step."""
    if len(model.in_shape) != 1 or not model.takes_indices:
        raise ValueError(f"the model takes inputs of shape {model.in_shape}, not numbers of characters, (steps,)")
    if len(model.out_shape) != 2 or model.out_shape[0] != model.in_shape[0]:
        raise ValueError(f"the model must give logits for each of {model.in_shape[0]} steps, not {model.out_shape}")
    steps, classes = model.out_shape
    return steps, classes


def _next_by_steps(model: Any, prompt: list[int]) -> Iterator[np.ndarray]:
    """Logits of what follows on each step, given the carried states; `prompt` grows meanwhile."""
    one = unrolled(model, 1, stateful=True)
    seen = 0
    while True:
        for code in prompt[seen:]:
            logits = one.predict(np.array([[code]], np.int64))
        seen = len(prompt)
        yield logits[0, 0]


def _next_by_windows(model: Any, prompt: list[int], steps: int) -> Iterator[np.ndarray]:
    """Logits of what follows on the last `steps` steps."""
    if ahead := sorted({type(layer).__name__ for layer in _layers(model) if not _looks_back(layer)}):
        raise ValueError(f"a model that writes must not see later steps, as {', '.join(ahead)} may do here")
    x = np.zeros((1, steps), np.int64)
    while True:
        last = prompt[-steps:]
        x[0, : len(last)] = last  # what is behind them does not matter to a model that is causal
        yield model.predict(x)[0, len(last) - 1]


def generate(
    model: Any,
    prompt: Sequence[int] | np.ndarray,
    length: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int | None = None,
    exclude: Sequence[int] = (),
) -> np.ndarray:
    """Let a model go on with a sequence, each step drawn from what it predicts from those before.

    Recurrent models carry their state from step to step. Others, such as Transformers with causal attention, see the
    last steps, as many as they were built for.

    Parameters
    ----------
    model : Model
        With inputs (steps,) that are indices, and logits (steps, classes).
    prompt : sequence of int
        What comes before, at least one step.
    length : int
        Number of steps to draw.
    temperature : float
        Logits are divided by this; with 0 the most probable class is taken each time.
    top_k : int, optional
        Draw among the so many most probable classes only.
    seed : int, optional
        One seed gives one sequence.
    exclude : sequence of int
        Classes that are never drawn.

    Returns
    -------
    ndarray of int64
        (length,).

    Raises
    ------
    ValueError
        If the model is of another kind, or an argument does not fit.
    """
    steps, classes = _check(model)
    length = integer(length, "generate: length", 0)
    top_k = None if top_k is None else integer(top_k, "generate: top_k", 1)
    if not 0.0 <= temperature < float("inf"):
        raise ValueError(f"generate: temperature must be finite and not negative, got {temperature}")
    codes = np.asarray(prompt)
    if codes.ndim != 1 or len(codes) == 0 or codes.dtype.kind not in "iu":
        raise ValueError(f"generate: prompt must be whole numbers, at least one, got {codes.dtype} of {codes.shape}")
    if not 0 <= codes.min() <= codes.max() < classes:
        raise ValueError(f"generate: the prompt has {codes.min()} to {codes.max()}; there are {classes} classes")
    if len(out := set(exclude) & set(range(classes))) == classes:
        raise ValueError("generate: exclude leaves no class that could be drawn")
    rng = random.generator(random.checked_seed(seed), random.SAMPLE)
    sequence: list[int] = codes.tolist()
    logits = (_next_by_steps if goes_by_steps(model) else lambda m, p: _next_by_windows(m, p, steps))(model, sequence)
    for _ in range(length):
        scores = next(logits).astype(np.float64)
        scores[list(out)] = -np.inf
        sequence.append(_draw(scores, temperature, top_k, rng))
    return np.array(sequence[len(codes) :], np.int64)


def _draw(scores: np.ndarray, temperature: float, top_k: int | None, rng: np.random.Generator) -> int:
    if temperature == 0.0:
        return int(scores.argmax())
    order = np.argsort(-scores, kind="stable")[:top_k]
    # the largest one becomes 0 first, so that a tiny temperature gives no infinity less infinity
    weights = np.exp((scores[order] - scores[order[0]]) / temperature)
    edges = np.cumsum(weights)
    return int(order[np.searchsorted(edges, rng.random() * edges[-1], side="right").clip(max=len(order) - 1)])


def bits(model: Any, codes: np.ndarray, before: np.ndarray | None = None) -> np.ndarray:
    """How many bits each step of a sequence costs, by the probability that a model gives it.

    The sequence is cut into windows that overlap: a step is measured where enough of the steps before it are in
    sight. That is three quarters of a window for a model that sees windows, and 256 steps for a recurrent one.

    Parameters
    ----------
    model : Model
        With inputs (steps,) that are indices, and logits (steps, classes).
    codes : ndarray of int64
        The sequence, (length,).
    before : ndarray of int64, optional
        What came before it, of which the end is looked at and not measured. Without it the first step is not measured.

    Returns
    -------
    ndarray of float64
        ``-log2 p`` of each step, (length,), or (length - 1,) where nothing came before.

    Raises
    ------
    ValueError
        If the model is of another kind.
    """
    steps, _ = _check(model)
    if model.loss is None or model.loss.link != "softmax":
        raise ValueError("bits are those of a model that was trained with the cross-entropy")
    lead = 3 * steps // 4
    if goes_by_steps(model):
        steps, lead = _LONG, _LEAD
        model = unrolled(model, steps, stateful=False)
    head = np.zeros(0, np.int64) if before is None else np.asarray(before)[-lead - 1 :]
    codes = np.concatenate([head, codes])
    first, end = max(len(head) - 1, 0), len(codes) - 1  # places whose next one is to be measured
    if end <= first:
        return np.zeros(0)
    # the last window is filled up behind the end with what nobody looks at
    stride = steps - lead
    count = 1 + max(0, -(-(end - steps) // stride))
    filled = np.zeros(steps + (count - 1) * stride + 1, np.int64)
    filled[: len(codes)] = codes
    place = np.arange(count)[:, None] * stride + np.arange(steps)
    measured = (place >= first) & (place < end)
    measured[1:, :lead] = False
    found = np.empty(end - first)
    for start in range(0, count, _ROWS):
        rows = slice(start, start + _ROWS)
        p = model.predict_proba(filled[place[rows]])
        own = np.take_along_axis(p, filled[place[rows] + 1][..., None], axis=-1)[..., 0]
        own = np.maximum(own[measured[rows]], np.finfo(np.float32).tiny)
        found[place[rows][measured[rows]] - first] = -np.log2(own, dtype=np.float64)
    return found
