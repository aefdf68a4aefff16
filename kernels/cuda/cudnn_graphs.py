"""Convolutions by cuDNN, through NVIDIA's package ``nvidia-cudnn-frontend``: a problem as a graph, and its plans.

Images are channels last, as everywhere; weights are as cuDNN wants them beside such images: (result channels, height,
width, channels of a group).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from itertools import islice
from math import prod
from typing import Any

__all__ = ["BIAS", "FACTOR", "RESULT", "SOURCE", "Convolution", "CudnnError", "Library", "Plan", "find"]

#: What :meth:`Plan.run` is given addresses for: of the forward pass image, weights, bias, result
SOURCE, FACTOR, BIAS, RESULT = 1, 2, 3, 4

# Versions of the library that have what is used here: its graphs take biases of any type from 9 on
_OLDEST = 90000
_TYPES = {"float32": "FLOAT", "float64": "DOUBLE", "float16": "HALF", "bfloat16": "BFLOAT16"}
# Of a plan: sums in another order from run to run, less exact sums, and methods whose errors are not those of a sum
_REFUSED = ("NONDETERMINISTIC", "DOWN_CONVERT_INPUTS", "REDUCED_PRECISION_REDUCTION", "FFT", "WINOGRAD")

#: Plans that are built, best first by the library's heuristics; some are compiled for it, which takes a second
CANDIDATES = 4

Images = tuple[int, int, int, int]
Pair = tuple[int, int]


class CudnnError(RuntimeError):
    """A call of cuDNN failed."""


def _failed(what: str, error: Exception) -> CudnnError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return CudnnError(f"{what}: {lines[0][:200]}")


def find() -> Any:
    """The frontend's module, with the library that it loaded.

    Raises
    ------
    ModuleNotFoundError
        If the frontend is not installed.
    OSError
        If it does not import, finds no library, or one that is too old; the message says so in one line.
    """
    try:
        import cudnn
    except ModuleNotFoundError as error:
        if error.name == "cudnn":
            raise
        raise OSError(f"the cuDNN frontend does not import: {error}") from None
    except Exception as error:  # a broken installation raises anything
        raise OSError(str(_failed("the cuDNN frontend does not import", error))) from None
    try:
        version = int(cudnn.backend_version())
    except Exception as error:  # no library
        raise OSError(str(_failed("the cuDNN frontend finds no cuDNN", error))) from None
    if version < _OLDEST:
        raise OSError(f"cuDNN {version} is older than {_OLDEST}")
    return cudnn


@dataclass(frozen=True)
class Convolution:
    """What a plan is chosen for.

    Attributes
    ----------
    kind : str
        What is computed: ``"forward"``, the gradient of the ``"image"``, or that of the ``"weights"``.
    image, result : tuple of int
        (n, height, width, channels) of the image, and of the convolution's result.
    size, stride, dilation : tuple of int
        Of the window: down and across.
    before, after : tuple of int
        Zeros that are added to the image: above and on the left, below and on the right.
    groups : int
        Of channels.
    dtype : str
        Of all arrays: float32, float64, float16 or bfloat16.
    compute : str
        float32 (that of 16 bits, too), tf32 or float64.
    bias, relu : bool
        Of the forward pass: whether a bias is added, and what is below zero cut off after it.
    """

    kind: str
    image: Images
    result: Images
    size: Pair
    stride: Pair
    before: Pair
    after: Pair
    dilation: Pair
    groups: int
    dtype: str
    compute: str
    bias: bool = False
    relu: bool = False

    @property
    def key(self) -> str:
        """All of it as text."""
        return "-".join(
            "x".join(map(str, value)) if isinstance(value, tuple) else str(value) for value in astuple(self)
        )


class Library:
    """cuDNN, with a handle for the current device.

    Parameters
    ----------
    cudnn : module
        The frontend, see :func:`find`.

    Attributes
    ----------
    version : int
        Of cuDNN, such as 91400.
    lock : threading.Lock
        Held while the handle's stream is set and used.

    Raises
    ------
    CudnnError
        If it does not start.
    """

    def __init__(self, cudnn: Any) -> None:
        self.cudnn = cudnn
        self.version = int(cudnn.backend_version())
        self.lock = threading.Lock()
        try:
            self.handle = cudnn.create_handle()
        except Exception as error:  # the frontend raises RuntimeErrors and types of its own
            raise _failed("cuDNN does not start", error) from None

    def graph(self, **types: Any) -> Any:
        """An empty graph of the frontend."""
        return self.cudnn.pygraph(handle=self.handle, **types)


class Plan:
    """A problem as a graph, with the plans of cuDNN that can compute it.

    What is not the same from run to run, or rounds more than sums do, is left out.

    Parameters
    ----------
    library : Library
        cuDNN.
    problem : Convolution
        What is computed.

    Raises
    ------
    CudnnError
        If the library has no plan for this problem.
    """

    def __init__(self, library: Library, problem: Convolution) -> None:
        self.library, self.problem = library, problem
        try:
            self._graph = self._described()
            self._graph.validate()
            self._graph.build_operation_graph()
            modes = library.cudnn.heur_mode
            self._graph.create_execution_plans([modes.A, modes.FALLBACK])
            refused = _REFUSED + ("TENSOR_CORE",) * (problem.compute == problem.dtype == "float32")
            self._graph.deselect_numeric_notes([getattr(library.cudnn.numerical_note, name) for name in refused])
            self._count = int(self._graph.get_execution_plan_count())
        except Exception as error:  # the frontend raises RuntimeErrors and types of its own
            raise _failed("cuDNN has no plan", error) from None
        self._workspaces: dict[int, int] = {}

    def _described(self) -> Any:
        """The graph: one convolution, with what follows it."""
        problem, types = self.problem, self.library.cudnn.data_type
        kind = getattr(types, _TYPES[problem.dtype])
        wide = types.DOUBLE if problem.dtype == "float64" else types.FLOAT
        graph = self.library.graph(io_data_type=kind, intermediate_data_type=wide, compute_data_type=wide)

        def tensor(shape: Images, uid: int, name: str) -> Any:
            dim, stride = _channels_last(shape)
            return graph.tensor(dim=dim, stride=stride, data_type=kind, name=name, uid=uid)

        window = {
            "pre_padding": list(problem.before),
            "post_padding": list(problem.after),
            "stride": list(problem.stride),
            "dilation": list(problem.dilation),
        }
        result_channels = problem.result[3]
        weights = (result_channels, *problem.size, problem.image[3] // problem.groups)
        if problem.kind == "forward":
            image, factor = tensor(problem.image, SOURCE, "image"), tensor(weights, FACTOR, "weights")
            result, shape = graph.conv_fprop(image=image, weight=factor, **window), problem.result
            if problem.bias:
                result = graph.bias(input=result, bias=tensor((1, 1, 1, result_channels), BIAS, "bias"))
            if problem.relu:
                result = graph.relu(input=result)
        elif problem.kind == "image":
            dy, factor = tensor(problem.result, SOURCE, "dy"), tensor(weights, FACTOR, "weights")
            result, shape = graph.conv_dgrad(loss=dy, filter=factor, **window), problem.image
        else:
            dy, image = tensor(problem.result, SOURCE, "dy"), tensor(problem.image, FACTOR, "image")
            result, shape = graph.conv_wgrad(image=image, loss=dy, **window), weights
        dim, stride = _channels_last(shape)
        result.set_output(True).set_data_type(kind).set_dim(dim).set_stride(stride).set_uid(RESULT)
        return graph

    def candidates(self, workspace: int, only: str | None = None) -> Iterator[tuple[int, str]]:
        """Number and name of each plan that can be used, up to :data:`CANDIDATES`, built as they are asked for.

        Parameters
        ----------
        workspace : int
            Bytes that a plan may work in.
        only : str, optional
            The name of the only plan that is wanted.
        """
        named = ((number, self._built(number, workspace, only)) for number in range(self._count))
        yield from islice(((number, name) for number, name in named if name is not None), CANDIDATES)

    def _built(self, number: int, workspace: int, only: str | None) -> str | None:
        """The name of a plan, if it may be used and could be built."""
        try:
            name = str(self._graph.get_plan_name_at_index(number))
            if only is not None and name != only:
                return None
            self._graph.build_plan_at_index(number)
            needed = int(self._graph.get_workspace_size_plan_at_index(number))
        except Exception:  # this is also how it says that a plan was left out by its notes
            return None
        if needed > workspace:
            return None
        self._workspaces[number] = needed
        return name

    def workspace(self, number: int) -> int:
        """Bytes that one of the candidates works in."""
        return self._workspaces[number]

    def run(self, number: int, addresses: dict[int, int], workspace: int, stream: int) -> None:
        """Compute by the candidate of that number, on a stream.

        Parameters
        ----------
        number : int
            Of :meth:`candidates`.
        addresses : dict
            On the device, by :data:`SOURCE`, :data:`FACTOR`, :data:`BIAS` and :data:`RESULT`. For gradients the source
            is `dy`, the factor weights or image.
        workspace : int
            Address of as many bytes as :meth:`workspace` says.
        stream : int
            Its pointer.

        Raises
        ------
        CudnnError
            If cuDNN refuses.
        """
        library = self.library
        with library.lock:
            try:
                library.cudnn.set_stream(handle=library.handle, stream=stream)
                self._graph.execute_plan_at_index(addresses, workspace, number, handle=library.handle)
            except Exception as error:  # the frontend raises RuntimeErrors and types of its own
                raise _failed("cuDNN cannot compute", error) from None


def _channels_last(shape: Images) -> tuple[list[int], list[int]]:
    """Sizes of (n, channels, height, width), the order that cuDNN counts in, and the elements from one to the next."""
    n, height, width, channels = shape
    return [n, channels, height, width], [prod(shape[1:]), 1, width * channels, channels]
