"""Which kernels there are, their sources, and how they are compiled and launched.

A compile unit is one ``.cu`` file with one set of template arguments, such as ``activation.cu`` for
``float, Relu``: it is compiled by NVRTC when the first of its kernels is launched, and CuPy keeps the
binary in its cache on disk.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from .. import step_state

__all__ = [
    "ACTIVATIONS",
    "FILES",
    "HALVES",
    "LOSSES",
    "OPTIONS",
    "SCALARS",
    "TENSOR_WIDTHS",
    "TILES",
    "UNITS",
    "WIDE",
    "WIDTHS",
    "Kernels",
    "expressions",
    "source",
]

_HERE = Path(__file__).parent
OPTIONS = ("--std=c++17",)

#: CUDA type of a NumPy dtype character; "E" is bfloat16
SCALARS = {"f": "float", "d": "double", "e": "f16", "E": "bf16"}

#: Character of the dtype that one is computed with
WIDE = {"f": "f", "d": "d", "e": "f", "E": "f"}

#: Number by which ``optimizer_step`` knows the dtype of the parameter's copy
HALVES = {"e": 1, "E": 2}

#: C++ functor of an activation
ACTIVATIONS = {
    "identity": "Identity",
    "relu": "Relu",
    "leaky_relu": "LeakyRelu",
    "elu": "Elu",
    "selu": "Selu",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "softplus": "Softplus",
    "softsign": "Softsign",
    "gelu": "Gelu",
    "gelu_tanh": "GeluTanh",
    "silu": "Silu",
    "mish": "Mish",
    "hard_sigmoid": "HardSigmoid",
    "hard_swish": "HardSwish",
}

#: C++ functor of an elementwise loss
LOSSES = {
    "mean_squared_error": "SquaredError",
    "mean_absolute_error": "AbsoluteError",
    "huber": "Huber",
    "binary_cross_entropy": "BinaryCrossEntropy",
    "poisson": "Poisson",
    "hinge": "Hinge",
}

#: Bytes that a thread moves at once when rows are copied, widest first
UNITS = {16: "Unit16", 8: "Unit8", 4: "Unit4", 2: "Unit2", 1: "Unit1"}

#: Columns that a block of attention gives its result at a time, by what it works on: more registers, and they spill
WIDTHS = {"f": (64, 128), "d": (64,), "e": (128,), "E": (128,)}

#: The same by tensor cores, which take no wider head
TENSOR_WIDTHS = (64, 128)

#: Rows and columns of the tiles of a convolution, by what they compute in: more registers than these, and they spill
TILES = {"f": ((128, 128), (64, 64), (128, 32)), "d": ((64, 64),)}

_RULES = (
    "Sgd<{t}>",
    "Momentum<{t}, false>",
    "Momentum<{t}, true>",
    "Adagrad<{t}>",
    *(f"RmsProp<{{t}}, {centered}, {momentum}>" for centered in ("false", "true") for momentum in ("false", "true")),
    "Adam<{t}, false>",
    "Adam<{t}, true>",
    "Adamax<{t}>",
    "Nadam<{t}>",
    "Lion<{t}>",
)

_TYPES = tuple((t,) for t in SCALARS.values())
# Weights, their gradients, and what is summed up have no 16-bit form
_WIDE_TYPES = tuple((SCALARS[char],) for char in dict.fromkeys(WIDE.values()))
_TYPES_ACTS = tuple((t, act) for t in SCALARS.values() for act in ACTIVATIONS.values())
_TYPES_LOSSES = tuple((t, loss) for t in SCALARS.values() for loss in LOSSES.values())
_TYPES_RNN = tuple((t, act) for t in SCALARS.values() for act in ("Tanh", "Relu"))
_TYPES_WIDTHS = tuple((SCALARS[c], str(width)) for c, widths in WIDTHS.items() for width in widths)
_HALF_WIDTHS = tuple((SCALARS[c], str(width)) for c in HALVES for width in TENSOR_WIDTHS)
_UNIT_ARGS = tuple((unit,) for unit in UNITS.values())
_TYPES_TILES = (
    *((t, *map(str, tile)) for c, t in SCALARS.items() for tile in TILES[WIDE[c]]),
    *(("tf32", *map(str, tile)) for tile in TILES["f"]),
)
_PLAIN: tuple[tuple[str, ...], ...] = ((),)

#: Every instantiation: file -> kernel -> template arguments
FILES: dict[str, dict[str, tuple[tuple[str, ...], ...]]] = {
    "activation": dict.fromkeys(("bias_act", "act_grad", "act_grad_bias"), _TYPES_ACTS),
    "rows": dict.fromkeys(("softmax", "softmax_grad"), _TYPES),
    "reduce": {
        **dict.fromkeys(("column_finish", "sq_norm", "l2_penalty", "clip_value"), _WIDE_TYPES),
        **dict.fromkeys(("add", "multiply", "scale"), _TYPES),
    },
    "dropout": dict.fromkeys(("dropout", "spatial_dropout"), _TYPES),
    "gather": dict.fromkeys(("gather_rows", "store_rows", "copy_rows"), _UNIT_ARGS),
    "scatter": {"add_at_rows": tuple((t, SCALARS[WIDE[c]]) for c, t in SCALARS.items())},
    "layer_norm": dict.fromkeys(("layer_norm", "layer_norm_dx", "layer_norm_dparam"), _TYPES),
    "batch_norm": {
        **dict.fromkeys(("batch_stats", "batch_norm_apply", "batch_norm_dparam", "batch_norm_dx"), _TYPES),
        **dict.fromkeys(("batch_stats_finish", "batch_norm_track"), _WIDE_TYPES),
    },
    "group_norm": dict.fromkeys(("group_norm", "group_norm_dx", "group_norm_dparam"), _TYPES),
    "rms_norm": dict.fromkeys(("rms_norm", "rms_norm_dx", "rms_norm_dparam"), _TYPES),
    "pooling": dict.fromkeys(("max_pool", "max_pool_grad", "avg_pool", "avg_pool_grad"), _TYPES),
    "masked_pooling": dict.fromkeys(("masked_max", "masked_max_grad", "masked_mean", "masked_mean_grad"), _TYPES),
    "images": {
        "resample": _UNIT_ARGS,
        **dict.fromkeys(("upsample_grad", "upsample_bilinear", "upsample_bilinear_grad"), _TYPES),
    },
    "conv": {**dict.fromkeys(("conv", "conv_weights"), _TYPES_TILES), "turn_weights": _TYPES},
    "depthwise": dict.fromkeys(("depthwise", "depthwise_dx", "depthwise_weights"), _TYPES),
    "losses": {"elementwise_loss": _TYPES_LOSSES},
    "xent": {
        "weight_total": _PLAIN,
        "softmax_xent": tuple((t, label) for c, t in SCALARS.items() for label in ("index_t", SCALARS[WIDE[c]])),
    },
    "step": dict.fromkeys(("begin_step", "sum_losses", "record_loss", "end_step", "end_epoch"), _PLAIN),
    "optimizers": {
        "optimizer_step": tuple((rule.format(t=t),) for (t,) in _WIDE_TYPES for rule in _RULES),
        "ema_step": _WIDE_TYPES,
    },
    "recurrent": {
        **dict.fromkeys(("rnn_step", "rnn_grad_step"), _TYPES_RNN),
        **dict.fromkeys(("lstm_step", "lstm_grad_step", "initial_grad"), _TYPES),
    },
    "gru": dict.fromkeys(("gru_step", "gru_reset", "gru_new"), _TYPES),
    "gru_grad": dict.fromkeys(("gru_grad_step", "gru_grad_new", "gru_grad_reset"), _TYPES),
    "attention": {"attention": _TYPES_WIDTHS},
    "attention_grad": {
        "attention_delta": _TYPES,
        **dict.fromkeys(("attention_dq", "attention_dkv"), _TYPES_WIDTHS),
    },
    "attention_tensor": {"attention_tensor": _HALF_WIDTHS},
    "attention_tensor_grad": dict.fromkeys(("attention_tensor_dq", "attention_tensor_dkv"), _HALF_WIDTHS),
    "rotary": {"rotary": _TYPES},
    "masks": {
        "step_mask": (*((t, t) for (t,) in _TYPES), *(("index_t", t) for (t,) in _TYPES)),
        "scale_rows": _TYPES,
    },
    "half": {
        "cast": tuple(pair for c in HALVES for pair in (("float", SCALARS[c]), (SCALARS[c], "float"))),
        "unscale": _PLAIN,
    },
}

_INCLUDE = re.compile(r'^#include "([a-z_]+\.cuh)"$', re.MULTILINE)


def _state_defines() -> Iterator[str]:
    for name, slot in vars(step_state).items():
        if name.isupper() and name != "SIZE":
            yield f"#define STATE_{name} {slot}"


@cache
def source(file: str) -> str:
    """The full text of one ``.cu`` file: step state slots, then the file with its headers put in.

    The headers are put in rather than included, because CuPy's kernel cache is keyed by this text
    and would not see a change in an included file.
    """
    seen: set[str] = set()

    def expand(name: str) -> str:
        if name in seen:
            return ""
        seen.add(name)
        text = (_HERE / name).read_text(encoding="utf-8")
        return f'#line 1 "{name}"\n' + _INCLUDE.sub(lambda match: expand(match[1]) + _resume(text, match, name), text)

    return "\n".join((*_state_defines(), expand(f"{file}.cu")))


def _resume(text: str, match: re.Match[str], name: str) -> str:
    """A line directive, so that the compiler's messages count on in the including file."""
    line = text.count("\n", 0, match.end()) + 1
    return f'\n#line {line} "{name}"'


def _name(kernel: str, args: Sequence[str]) -> str:
    return f"{kernel}<{', '.join(args)}>" if args else kernel


def expressions(file: str, args: Sequence[str] | None = None) -> list[str]:
    """The name expressions of a file's kernels: with template arguments `args`, or all of them."""
    wanted = None if args is None else tuple(args)
    return [
        _name(kernel, each)
        for kernel, table in FILES[file].items()
        for each in table
        if wanted is None or each == wanted
    ]


class Kernels:
    """The kernels of one device, compiled on first use, and launch shapes that fill it.

    Parameters
    ----------
    cupy : module
        The imported CuPy; the device must be current when a kernel is asked for or launched.
    multiprocessors : int
        Number of the device's streaming multiprocessors.
    """

    THREADS = 256

    def __init__(self, cupy: Any, multiprocessors: int) -> None:
        self._cupy = cupy
        self._functions: dict[tuple[str, ...], Any] = {}
        #: No launch of :meth:`flat` or :meth:`warps` has more blocks: room for one value a block.
        self.most_blocks = 8 * multiprocessors

    def get(self, file: str, kernel: str, *args: str) -> Any:
        """The kernel with these template arguments, as CuPy's ``RawKernel``."""
        key = (kernel, *args)
        function = self._functions.get(key)
        if function is None:
            # CuPy compiles the module when its first function is asked for
            module = self._cupy.RawModule(code=source(file), options=OPTIONS, name_expressions=expressions(file, args))
            for expression, table in FILES[file].items():
                if args in table:
                    self._functions[(expression, *args)] = module.get_function(_name(expression, args))
            function = self._functions[key]
        return function

    def flat(self, items: int, per_thread: int = 4) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Grid and block of a kernel that strides over `items`."""
        blocks = -(-items // (self.THREADS * per_thread))
        return (max(1, min(blocks, self.most_blocks)),), (self.THREADS,)

    def warps(self, rows: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Grid and block of a kernel that gives each row a warp."""
        blocks = -(-rows // (self.THREADS // 32))
        return (max(1, min(blocks, self.most_blocks)),), (self.THREADS,)

    def tiles(self, rows: int, columns: int, at_once: int = 1) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """Grid and block of a column sum, and rows per chunk; ``grid[1]`` is the number of chunks.

        `at_once` is the number of neighbouring elements that a thread reads. Enough chunks to fill the device, but
        none of fewer than 64 rows, or four a thread: with one chunk the sum is done, with more it needs a second pass.
        """
        across = min(_across(columns, at_once), 32)
        tiles = max(1, -(-columns // (across * at_once)))
        fewest = max(64, 4 * self.THREADS // across)
        chunks = max(1, min(self.most_blocks // tiles, -(-rows // fewest)))
        rows_per_chunk = max(1, -(-rows // chunks))
        return (tiles, max(1, -(-rows // rows_per_chunk))), (self.THREADS,), rows_per_chunk

    def row_tiles(self, rows: int, columns: int) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """Grid and block of ``softmax_xent``, and the rows that a block takes at a time.

        Few enough that a block finds them in the cache when it reads them again, and that a small batch occupies more
        than one multiprocessor; and no more blocks than whose sums of columns take 64 MiB in float32.
        """
        at_a_time = max(8, min(64, 8192 // max(columns, 1), -(-rows // self.most_blocks)))
        blocks = min(-(-rows // at_a_time), self.most_blocks, max(1, (1 << 24) // max(columns, 1)))
        return (max(1, blocks),), (self.THREADS,), at_a_time


def _across(columns: int, at_once: int) -> int:
    """As many threads as `columns` need with `at_once` each, as a power of two."""
    return 1 << max(0, -(-columns // at_once) - 1).bit_length()
