"""PyTorch on a GPU: eager, compiled in two ways, and with the whole step in a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import pytorch

__all__ = ["Compiled", "Eager", "Graph", "MaxAutotune"]

# Steps before a capture: PyTorch asks for a few, on another stream, so that everything lazy has happened
_WARM_UP = 3


class _OnCuda(pytorch.Eager):
    """Everything lives on the GPU; what is read at the end of a run waits for it."""

    device = "cuda"

    def predict(self, inputs: torch.Tensor) -> Any:
        return super().predict(inputs).cpu()

    def seconds(self, work: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3


class Eager(_OnCuda):
    """``nn.Sequential`` with a fused optimizer."""


class Compiled(_OnCuda, pytorch.Compiled):
    """The forward pass with its loss, and so the backward pass, by ``torch.compile``."""


class MaxAutotune(Compiled):
    """The same in the mode that tries products of Triton's, and runs its parts as CUDA graphs."""

    mode = "max-autotune"

    def step(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        # The next step's graph writes over the loss
        return super().step(x, y).clone()


class Graph(_OnCuda):
    """A graph, captured by hand, of gradient, loss and update on fixed buffers; a smaller last batch has its own."""

    capturable = True

    def compile(self) -> None:
        super().compile()
        self._graphs: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor, Any]] = {}

    def _captured(self, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Any]:
        """Buffers of a batch, its loss, and the graph of a step on them."""
        if rows not in self._graphs:
            x, y = self.X[:rows].clone(), self.y[:rows].clone()
            before = [p.detach().clone() for p in self.model.parameters()]
            kept = [value.clone() for value in self._moments()]
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP):
                    super().step(x, y)
            torch.cuda.current_stream().wait_stream(stream)
            self.optimizer.zero_grad(set_to_none=True)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                loss = self.forward_loss(x, y)
                loss.backward()
                self.optimizer.step()
            # What the warm-up changed is as it was; the first one began without moments
            with torch.no_grad():
                for p, value in zip(self.model.parameters(), before, strict=True):
                    p.copy_(value)
                for i, value in enumerate(self._moments()):
                    value.copy_(kept[i]) if kept else value.zero_()
            self._graphs[rows] = x, y, loss.detach(), graph
        return self._graphs[rows]

    def _moments(self) -> list[torch.Tensor]:
        """The tensors of the optimizer's state."""
        return [v for state in self.optimizer.state.values() for v in state.values() if torch.is_tensor(v)]

    def step(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        own_x, own_y, loss, graph = self._captured(len(x))
        own_x.copy_(x)
        own_y.copy_(y)
        graph.replay()
        return loss.clone()

    def step_on(self, index: torch.Tensor) -> torch.Tensor:
        x, y, loss, graph = self._captured(len(index))
        # Straight into the buffers
        torch.index_select(self.X, 0, index, out=x)
        torch.index_select(self.y, 0, index, out=y)
        graph.replay()
        return loss
