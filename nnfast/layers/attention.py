"""Multi-head attention, of a sequence to itself and to another one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import initializers
from ..backends.base import Array, Backend
from .base import BuildContext, Layer, Shape, positive_int, rows
from .convolution import PerGroup

__all__ = ["AttentionLayer", "CrossAttention", "MultiHeadAttention"]

#: Base of rotary positions where none is named, that of Su et al.
ROTARY_BASE = 10_000.0


class AttentionLayer(Layer):
    """What layers of attention share: heads, the product before them and the one after them."""

    replayable = True
    needs_output = False

    W_out: Array
    dW_out: Array
    b_out: Array | None = None
    db_out: Array | None = None
    attended: Array
    dattended: Array
    lse: Array | None

    def _options(
        self,
        heads: Any,
        head_features: Any,
        bias: bool,
        initializer: Any,
        bias_initializer: Any,
        out_features: Any,
        name: str | None,
    ) -> None:
        who = type(self).__name__
        self.heads = positive_int(heads, f"{who}: heads")
        self.head_features = None if head_features is None else positive_int(head_features, f"{who}: head_features")
        self.out_features = None if out_features is None else positive_int(out_features, f"{who}: out_features")
        self.bias = bool(bias)
        # A function gets a description, under which a model file names it
        self.initializer = initializers.get(initializer) if callable(initializer) else initializer
        self.bias_initializer = initializers.get(bias_initializer) if callable(bias_initializer) else bias_initializer
        self.name = name

    def _check(self, shape: Shape) -> None:
        if len(shape) != 2:
            raise ValueError(f"{type(self).__name__} takes inputs of shape (steps, features), got {tuple(shape)}")

    def _head_features(self, features: int) -> int:
        """Features of a head: those that were asked for, or equal shares of the input's."""
        if self.head_features is not None:
            return self.head_features
        if features % self.heads:
            raise ValueError(
                f"{type(self).__name__}: {self.heads} heads do not divide the input's {features} features; "
                "head_features= sets those of a head"
            )
        return features // self.heads

    def _project(self, ctx: BuildContext, suffix: str, inputs: int, outputs: int, parts: int = 1) -> None:
        """Declare weights and bias of a product; `parts` side by side are drawn each on its own."""
        init = initializers.get(self.initializer)
        if parts > 1 and not isinstance(init, initializers.Custom):
            init = PerGroup(init, parts, False)
        ctx.param(f"W_{suffix}", (inputs, outputs), init)
        if self.bias:
            ctx.param(f"b_{suffix}", (outputs,), self.bias_initializer)

    def _declare(self, ctx: BuildContext, steps: int, width: int, features: int) -> Shape:
        """Declare what follows the heads, and the arrays around them."""
        outputs = features if self.out_features is None else self.out_features
        self._project(ctx, "out", width, outputs)
        ctx.scratch("attended", (steps, width))
        ctx.saved("dattended", (steps, width))
        ctx.saved("lse", (self.heads, steps), full=True)
        return (steps, outputs)

    def _attend(
        self, bk: Backend, parts: Sequence[Array], y: Array, *, causal: bool = False, mask: Array | None
    ) -> None:
        q, k, v = parts
        bk.attention(
            q, k, v, heads=self.heads, causal=causal, scale=self._scale(q), mask=mask, out=self.attended, lse=self.lse
        )
        bk.linear_act(rows(self.attended), self.W_out, self.b_out, "identity", out=rows(y))

    def _attend_grad(
        self,
        bk: Backend,
        dy: Array,
        parts: Sequence[Array],
        gradients: Sequence[Array],
        *,
        causal: bool = False,
        mask: Array | None,
    ) -> None:
        q, k, v = parts
        dq, dk, dv = gradients
        attended, dattended = rows(self.attended), rows(self.dattended)
        bk.linear_act_grad(
            rows(dy), attended, self.W_out, None, "identity", dx=dattended, dW=self.dW_out, db=self.db_out
        )
        options: dict[str, Any] = {"heads": self.heads, "causal": causal, "scale": self._scale(q), "mask": mask}
        bk.attention_grad(self.dattended, q, k, v, **options, out=self.attended, lse=self.lse, dq=dq, dk=dk, dv=dv)

    def _scale(self, q: Array) -> float:
        return float((q.shape[-1] // self.heads) ** -0.5)


def _columns(x: Array, parts: int) -> list[Array]:
    """Equal parts of the last axis, side by side; views."""
    width = x.shape[-1] // parts
    return [x[..., i * width : (i + 1) * width] for i in range(parts)]


class MultiHeadAttention(AttentionLayer):
    """Self-attention: each step takes from all steps, by how well its query fits their keys.

    ``q, k, v = x W_qkv + b_qkv`` side by side; of each head ``softmax(q k^T / sqrt(head_features)) v``; then
    ``y = heads W_out + b_out``. Vaswani et al.: "Attention is all you need" (2017).

    Parameters
    ----------
    heads : int
        Number of heads.
    head_features : int, optional
        Features of a head; by default the input's, divided by `heads`.
    causal : bool
        Whether a step looks at itself and those before it only.
    bias : bool
        Whether `b_qkv` and `b_out` are added.
    rotary : bool or float
        Whether queries and keys are turned by their position (Su et al.: "RoFormer", 2021); a number is the base of
        the angles, in place of 10000.
    initializer : str, Initializer or callable
        For `W_qkv`, whose three parts are drawn each on its own, and `W_out`.
    bias_initializer : str, Initializer or callable
        For `b_qkv` and `b_out`.
    out_features : int, optional
        Size of the output's last axis; by default the input's.
    name : str, optional
        Name of the layer in the model.

    Notes
    -----
    Shapes, with ``w = heads * head_features``: `x` (n, steps, features), `W_qkv` (features, 3 w), `b_qkv` (3 w,),
    `W_out` (w, out_features), `b_out` (out_features,), `y` (n, steps, out_features). Steps that are masked are not
    looked at; a step that may look at nothing gets ``b_out``.
    """

    W_qkv: Array
    dW_qkv: Array
    b_qkv: Array | None = None
    db_qkv: Array | None = None
    qkv: Array
    dqkv: Array

    def __init__(
        self,
        heads: int,
        head_features: int | None = None,
        *,
        causal: bool = False,
        bias: bool = True,
        rotary: bool | float = False,
        initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        out_features: int | None = None,
        name: str | None = None,
    ) -> None:
        self._options(heads, head_features, bias, initializer, bias_initializer, out_features, name)
        self.causal = bool(causal)
        self.rotary: bool | float = rotary
        if isinstance(rotary, bool):
            self._base = ROTARY_BASE
        else:
            if not isinstance(rotary, (int, float)):
                raise TypeError(f"MultiHeadAttention: rotary must be a bool or a number, not {type(rotary).__name__}")
            if not 1.0 < rotary < float("inf"):
                raise ValueError(f"MultiHeadAttention: the base of rotary must be finite and above 1, got {rotary}")
            self.rotary = self._base = float(rotary)

    def build(self, in_shape: Shape, ctx: BuildContext) -> Shape:
        self._check(in_shape)
        steps, features = in_shape
        each = self._head_features(features)
        if self.rotary and each % 2:
            raise ValueError(f"MultiHeadAttention: rotary turns pairs of features, but a head has {each}")
        width = self.heads * each
        self._project(ctx, "qkv", features, 3 * width, parts=3)
        ctx.scratch("qkv", (steps, 3 * width))
        ctx.saved("dqkv", (steps, 3 * width))
        return self._declare(ctx, steps, width, features)

    def _turn(self, bk: Backend, qkv: Array, inverse: bool) -> None:
        """Rotary positions of queries and keys, in place: twice as many heads."""
        if self.rotary:
            both = qkv[..., : qkv.shape[-1] // 3 * 2]
            bk.rotary(both, heads=2 * self.heads, base=self._base, inverse=inverse, out=both)

    def forward(self, bk: Backend, x: Array, y: Array) -> None:
        bk.linear_act(rows(x), self.W_qkv, self.b_qkv, "identity", out=rows(self.qkv))
        self._turn(bk, self.qkv, False)
        self._attend(bk, _columns(self.qkv, 3), y, causal=self.causal, mask=self.mask)

    def backward(self, bk: Backend, dy: Array, dx: Array | None) -> None:
        parts, gradients = _columns(self.qkv, 3), _columns(self.dqkv, 3)
        self._attend_grad(bk, dy, parts, gradients, causal=self.causal, mask=self.mask)
        self._turn(bk, self.dqkv, True)
        into = None if dx is None else rows(dx)
        bk.linear_act_grad(
            rows(self.dqkv), rows(self.x), self.W_qkv, None, "identity", dx=into, dW=self.dW_qkv, db=self.db_qkv
        )


class CrossAttention(AttentionLayer):
    """Attention of one sequence to another: the first input asks, the second one is looked at.

    ``q = x W_q + b_q``; ``k, v = z W_kv + b_kv`` side by side; of each head ``softmax(q k^T / sqrt(head_features)) v``;
    then ``y = heads W_out + b_out``. Vaswani et al.: "Attention is all you need" (2017).

    Parameters
    ----------
    heads : int
        Number of heads.
    head_features : int, optional
        Features of a head; by default those of the first input, divided by `heads`.
    bias : bool
        Whether `b_q`, `b_kv` and `b_out` are added.
    initializer : str, Initializer or callable
        For `W_q`, `W_kv`, whose two parts are drawn each on its own, and `W_out`.
    bias_initializer : str, Initializer or callable
        For the biases.
    out_features : int, optional
        Size of the output's last axis; by default that of the first input.
    name : str, optional
        Name of the layer in the model.

    Attributes
    ----------
    masks : sequence of (array or None), optional
        Set by binding: the mask of each input; that of the second one says which steps are not looked at.

    Notes
    -----
    Shapes, with ``w = heads * head_features``: `x` (n, t, features), `z` (n, s, others), `W_q` (features, w), `W_kv`
    (others, 2 w), `W_out` (w, out_features), `y` (n, t, out_features).
    """

    many = True
    W_q: Array
    dW_q: Array
    b_q: Array | None = None
    db_q: Array | None = None
    W_kv: Array
    dW_kv: Array
    b_kv: Array | None = None
    db_kv: Array | None = None
    q: Array
    dq: Array
    kv: Array
    dkv: Array

    def __init__(
        self,
        heads: int,
        head_features: int | None = None,
        *,
        bias: bool = True,
        initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        out_features: int | None = None,
        name: str | None = None,
    ) -> None:
        self._options(heads, head_features, bias, initializer, bias_initializer, out_features, name)

    def build(self, in_shape: Any, ctx: BuildContext) -> Shape:
        if len(in_shape) != 2:
            raise ValueError(f"CrossAttention takes two inputs, what asks and what is looked at, got {len(in_shape)}")
        for shape in in_shape:
            self._check(shape)
        (t, features), (s, others) = in_shape
        width = self.heads * self._head_features(features)
        self._project(ctx, "q", features, width)
        self._project(ctx, "kv", others, 2 * width, parts=2)
        ctx.scratch("q", (t, width))
        ctx.saved("dq", (t, width))
        ctx.scratch("kv", (s, 2 * width))
        ctx.saved("dkv", (s, 2 * width))
        return self._declare(ctx, t, width, features)

    def _key_mask(self) -> Array | None:
        return self.masks[1] if len(self.masks) > 1 else None

    def forward(self, bk: Backend, x: Any, y: Array) -> None:
        bk.linear_act(rows(x[0]), self.W_q, self.b_q, "identity", out=rows(self.q))
        bk.linear_act(rows(x[1]), self.W_kv, self.b_kv, "identity", out=rows(self.kv))
        self._attend(bk, (self.q, *_columns(self.kv, 2)), y, mask=self._key_mask())

    def backward(self, bk: Backend, dy: Array, dx: Any) -> None:
        parts, gradients = (self.q, *_columns(self.kv, 2)), (self.dq, *_columns(self.dkv, 2))
        self._attend_grad(bk, dy, parts, gradients, mask=self._key_mask())
        into = [None if each is None else rows(each) for each in dx or (None, None)]
        asks, looked_at = rows(self.x[0]), rows(self.x[1])
        bk.linear_act_grad(rows(self.dq), asks, self.W_q, None, "identity", dx=into[0], dW=self.dW_q, db=self.db_q)
        bk.linear_act_grad(
            rows(self.dkv), looked_at, self.W_kv, None, "identity", dx=into[1], dW=self.dW_kv, db=self.db_kv
        )
