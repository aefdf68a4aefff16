"""Linear layers on a GPU: one product each, with all that its epilogue can take over, across two layers where it may.

The gradient of a layer's input is a product; next comes the slope of the activation below, and its column sums, the
bias gradient. In a step that is recorded that product waits for the call that follows: if it is that one, cuBLASLt does
all three at once, by a mask (for ReLU) or the pre-activation (for GELU) that the forward pass left. Whether that is
faster is measured for each size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from .. import activations
from ..activations import Activation
from ..kernels.cuda.cublaslt import DGELU_BGRAD, DRELU_BGRAD, GELU_AUX_BIAS, RELU_AUX_BIAS, mask_bits
from .base import Array
from .cupy_layers import same

__all__ = ["Auxiliary", "CudaLinear"]

# Of GELU's input, elements between two rows: the library's condition
_GELU_ROWS = 8


@dataclass
class Auxiliary:
    """What the layers of a recorded step leave for its backward pass.

    Attributes
    ----------
    masks : dict
        By the address of ReLU's output: the mask.
    outputs : dict
        By address: the shape of each output of ReLU that was computed by one product.
    wanted : set
        Addresses of those whose mask a backward pass could use.
    """

    masks: dict[int, Array] = field(default_factory=dict)
    outputs: dict[int, tuple[int, int]] = field(default_factory=dict)
    wanted: set[int] = field(default_factory=set)


class CudaLinear:
    """Mixin of :class:`~nnfast.backends.cupy_backend.CupyBackend`."""

    _type: Any
    _bias_act: Any
    _act_grad_bias: Any
    _finish_chunks: Any
    _rows: Any
    _cast: Any
    _scratch: Any
    _product: Any
    _recording: Any
    _milliseconds: Any
    epilogues: Any
    gemm: Any
    zeros: Any

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # By layer of a backward pass: whether the product across two layers is the faster way
        self._across: dict[tuple[Any, ...], bool] = {}

    # ---- recording --------------------------------------------------------------------------------
    @contextmanager
    def _waiting(self, auxiliary: Auxiliary) -> Iterator[None]:
        """Within it, gradients of inputs wait for the call that follows them."""
        self._recording.auxiliary = auxiliary
        try:
            yield
            self._flush()
        finally:
            self._recording.auxiliary = self._recording.pending = self._recording.sums = None

    def _make_masks(self, auxiliary: Auxiliary) -> bool:
        """Room for the masks that were found to be of use; whether there are any."""
        for address in auxiliary.wanted & auxiliary.outputs.keys():
            rows, columns = auxiliary.outputs[address]
            auxiliary.masks[address] = self.zeros(rows * mask_bits(columns) // 8, "uint8")
        return bool(auxiliary.masks)

    def _flush(self) -> None:
        """Do the product that waits, if one does."""
        pending, self._recording.pending = self._recording.pending, None
        if pending is not None:
            dy, W, dx = pending
            self.gemm(dy, W, out=dx, trans_b=True)

    # ---- layers -----------------------------------------------------------------------------------
    def linear_act(
        self, x: Array, W: Array, b: Array | None, act: str | Activation, *, out: Array, saved: Array | None = None
    ) -> Any:
        act = activations.get(act)
        t = self._type(x, W, b, out, saved)
        if t is None or not same(out, saved) or (b is not None and b.shape != W.shape[1:]):
            return NotImplemented
        if b is not None and self._in_epilogue(x, W, b, act, out, saved):
            return None
        identity = activations.get(None)
        # A product of 16 bits that takes its bias later would be rounded twice
        if b is not None and x.dtype.itemsize == 2 and self._in_epilogue(x, W, b, identity, out, None):
            b = None
        else:
            self.gemm(x, W, out=out)
        softmax = act.name == "softmax"
        if b is not None or saved is not None or act.name not in ("identity", "softmax"):
            self._bias_act(t, identity if softmax else act, out, b, saved, out)
        if softmax:
            self._rows(t, "softmax", out, out, out)
        return None

    def _in_epilogue(self, x: Array, W: Array, b: Array, act: Activation, out: Array, saved: Array | None) -> bool:
        """Whether one product did all of it."""
        epilogue = self.epilogues.get(act.name)
        if epilogue is None:
            return False
        if saved is not None:  # GELU's input is kept
            fits = act.name == "gelu_tanh" and out.shape[1] % _GELU_ROWS == 0
            return fits and self._product(x, W, out, epilogue=GELU_AUX_BIAS, bias=b, aux=(saved, out.shape[1]))
        auxiliary: Auxiliary | None = self._recording.auxiliary
        if act.name == "relu" and auxiliary is not None:
            auxiliary.outputs[out.data.ptr] = out.shape
            mask = auxiliary.masks.get(out.data.ptr)
            if mask is not None:
                aux = mask, mask_bits(out.shape[1])
                if self._product(x, W, out, epilogue=RELU_AUX_BIAS, bias=b, aux=aux):
                    return True
                del auxiliary.masks[out.data.ptr]  # the backward pass goes without, too
        return bool(self._product(x, W, out, epilogue=epilogue, bias=b))

    def linear_act_grad(
        self,
        dy: Array,
        x: Array,
        W: Array,
        saved: Array | None,
        act: str | Activation,
        *,
        dx: Array | None,
        dW: Array,
        db: Array | None,
    ) -> Any:
        act = activations.get(act)
        left, self._recording.sums = self._recording.sums, None
        t = self._type(dy, x, W, saved, dx, wide=(dW, db))
        plain = act.name == "identity"
        if t is None or act.name == "softmax" or db is None or (saved is None and not plain):
            return NotImplemented  # nothing to fuse: the composition calls the kernels one by one
        if db.shape != dy.shape[1:] or not (plain or same(dy, saved)):
            return NotImplemented

        def slope() -> None:
            if plain and left is not None and left[:2] == (dy.data.ptr, dy.shape):
                self._finish_chunks(left[3], (left[2], db))  # the loss has summed it up
            else:
                self._act_grad_bias(t, act, dy, saved, None if plain else dy, db)

        if not self._across_layers(dy, act, saved, db, slope):
            self._flush()
            slope()
        self.gemm(x, dy, out=dW, trans_a=True)
        if dx is not None and self._recording.auxiliary is not None:
            self._recording.pending = dy, W, dx
        elif dx is not None:
            self.gemm(dy, W, out=dx, trans_b=True)
        return None

    def _across_layers(
        self, dy: Array, act: Activation, saved: Array | None, db: Array, slope: Callable[[], None]
    ) -> bool:
        """Whether the product that waits, which gives `dy`, was done with the slope and the bias gradient of `act`."""
        auxiliary: Auxiliary | None = self._recording.auxiliary
        pending = self._recording.pending
        if auxiliary is None or pending is None or saved is None or act.name not in self.epilogues:
            return False
        above, W, dx = pending
        if (dx.data.ptr, dx.shape) != (dy.data.ptr, dy.shape):
            return False
        columns = dy.shape[1]
        if act.name == "relu":
            auxiliary.wanted.add(saved.data.ptr)
            mask = auxiliary.masks.get(saved.data.ptr)
            aux, epilogue = None if mask is None else (mask, mask_bits(columns)), DRELU_BGRAD
        elif act.name == "gelu_tanh" and columns % _GELU_ROWS == 0:
            aux, epilogue = (saved, columns), DGELU_BGRAD
        else:
            return False
        if aux is None:
            return False

        # The epilogue writes the bias gradient in the dtype of its result
        sums = db
        if db.dtype != dy.dtype:
            sums = self._scratch(f"bias {dy.dtype.char}", db.size, dy.dtype)[: db.size]

        def fused() -> bool:
            done = bool(self._product(above, W, dy, trans_b=True, epilogue=epilogue, bias=sums, aux=aux))
            return done and (sums is db or self._cast(sums, db))

        def separate() -> None:
            self.gemm(above, W, out=dy, trans_b=True)
            slope()

        key = (epilogue, above.shape, dy.shape, dy.dtype.char, self._recording.rounding)
        if key not in self._across:
            self._recording.pending = None  # what is tried here is no call that it waits for
            self._across[key] = fused() and (self._recording.capturing or self._faster(fused, separate))
            self._recording.pending = pending
        if not self._across[key] or not fused():
            auxiliary.masks.pop(saved.data.ptr, None)  # nor need the forward pass leave one
            return False
        self._recording.pending = None
        return True

    def _faster(self, one: Callable[[], Any], other: Callable[[], Any]) -> bool:
        """Whether `one` takes less time than `other` on the current stream."""
        return bool(self._milliseconds(one) <= self._milliseconds(other))
