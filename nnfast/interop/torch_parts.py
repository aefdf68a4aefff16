"""Modules that PyTorch has not: what a converted model needs besides its own. Importing this imports PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ..positions import position_angles

__all__ = [
    "Attention",
    "ChannelsFirst",
    "ChannelsLast",
    "Graph",
    "Masking",
    "MeanOfPixels",
    "Positions",
    "Reorder",
    "Sequences",
]

Tensor = torch.Tensor


class ChannelsFirst(nn.Module):
    """(n, ..., channels) becomes (n, channels, ...)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(-1, 1)


class ChannelsLast(nn.Module):
    """(n, channels, ...) becomes (n, ..., channels)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(1, -1)


class Reorder(nn.Module):
    """The features of an image that was flattened with its channels first, as if they had been last."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        *spatial, channels = shape
        self.shape = (channels, *spatial)

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, self.shape).movedim(1, -1).flatten(1)


class Masking(nn.Module):
    """Zeros in the steps all of whose features are `value`."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return x * (x != self.value).any(-1, keepdim=True)


class MeanOfPixels(nn.Module):
    """The mean of the pixels that are there, of windows over borders that are not alike on both sides."""

    def __init__(self, pool: nn.Module, sides: Sequence[int]) -> None:
        super().__init__()
        self.pool, self.sides = pool, tuple(sides)

    def forward(self, x: Tensor) -> Tensor:
        there = functional.pad(torch.ones_like(x[:1, :1]), self.sides)
        pooled: Tensor = self.pool(functional.pad(x, self.sides)) / self.pool(there)
        return pooled


class Positions(nn.Module):
    """``x + P`` for the first steps of `P`."""

    def __init__(self, P: Tensor, learned: bool) -> None:
        super().__init__()
        if learned:
            self.P = nn.Parameter(P)
        else:
            self.register_buffer("P", P, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.P[: x.shape[1]]


class Sequences(nn.Module):
    """A recurrent module whose result is the tensor of all states, or the last one.

    `reverse`: of one direction, the last step comes first; of both, the one that goes backward is the first of them.
    """

    def __init__(self, rnn: nn.RNNBase, *, every: bool, reverse: bool, merge: str = "concat") -> None:
        super().__init__()
        self.rnn, self.every, self.reverse, self.merge = rnn, every, reverse, merge

    def forward(self, x: Tensor) -> Tensor:
        if not self.rnn.bidirectional:
            states: Tensor = self.rnn(x.flip(1) if self.reverse else x)[0]
            if not self.every:
                return states[:, -1]
            return states.flip(1) if self.reverse else states
        ahead, back = self.rnn(x)[0].chunk(2, -1)
        if not self.every:
            ahead, back = ahead[:, -1], back[:, 0]
        one, other = (back, ahead) if self.reverse else (ahead, back)
        match self.merge:
            case "concat":
                return torch.cat([one, other], -1)
            case "mul":
                return one * other
            case "ave":
                return (one + other) / 2
            case _:
                return one + other


class Attention(nn.Module):
    """Attention of several heads, with the parameters of ``nn.MultiheadAttention``.

    Parameters
    ----------
    sizes : tuple of int
        Features of what asks, of what is looked at, of all heads, and of the output.
    heads : int
    bias : bool
    causal : bool
        Whether a step looks at itself and those before it only.
    base : float, optional
        Of the angles of rotary positions.
    """

    def __init__(
        self,
        sizes: tuple[int, int, int, int],
        heads: int,
        *,
        bias: bool,
        causal: bool = False,
        base: float | None = None,
    ) -> None:
        super().__init__()
        asked, looked_at, width, outputs = sizes
        self.heads, self.causal, self.base = heads, causal, base
        self.in_proj_weight: Tensor | None = None
        if asked == looked_at:
            self.in_proj_weight = nn.Parameter(torch.empty(3 * width, asked))
        else:
            self.q_proj_weight = nn.Parameter(torch.empty(width, asked))
            self.k_proj_weight = nn.Parameter(torch.empty(width, looked_at))
            self.v_proj_weight = nn.Parameter(torch.empty(width, looked_at))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width)) if bias else None
        self.out_proj = nn.Linear(width, outputs, bias=bias)

    def _turned(self, x: Tensor) -> Tensor:
        """Rotary positions of (n, heads, steps, features)."""
        if self.base is None:
            return x
        angles = torch.from_numpy(position_angles(np, x.shape[2], x.shape[3], self.base)).to(x)
        left, right = x.chunk(2, -1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([left * cos - right * sin, left * sin + right * cos], -1)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases: Any = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        z = x if z is None else z
        q, k, v = (
            functional.linear(source, W, b).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for source, W, b in zip((x, z, z), weights, biases, strict=True)
        )
        y = functional.scaled_dot_product_attention(self._turned(q), self._turned(k), v, is_causal=self.causal)
        result: Tensor = self.out_proj(y.transpose(1, 2).flatten(2))
        return result


class Graph(nn.Module):
    """Modules in the order in which they are called, each on results of others.

    Parameters
    ----------
    parts : sequence of (Module, or "add" or "concat")
        What gives each value; the same module may be there several times.
    sources : sequence of sequence of int
        What each one is called on: earlier parts, or the input as -1.
    axes : sequence of int
        Along which each "concat" goes.
    """

    def __init__(self, parts: Sequence[nn.Module | str], sources: Sequence[Sequence[int]], axes: Sequence[int]) -> None:
        super().__init__()
        self.sources, self.axes = [tuple(own) for own in sources], list(axes)
        unique: list[nn.Module] = []
        self.calls: list[int | str] = []
        for part in parts:
            if isinstance(part, str):
                self.calls.append(part)
                continue
            if not any(part is one for one in unique):
                unique.append(part)
            self.calls.append(next(i for i, one in enumerate(unique) if one is part))
        self.parts = nn.ModuleList(unique)

    def forward(self, x: Tensor) -> Tensor:
        values: list[Tensor] = []
        for call, sources, axis in zip(self.calls, self.sources, self.axes, strict=True):
            given = [values[i] if i >= 0 else x for i in sources]
            if call == "concat":
                values.append(torch.cat(given, axis))
            elif call == "add":
                values.append(torch.stack(given).sum(0))
            else:
                assert isinstance(call, int)
                values.append(self.parts[call](*given))
        return values[-1]
