"""Every constant that decides how work is cut, in one place, with its reason."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

_CACHE_FILE = "/sys/devices/system/cpu/cpu0/cache/index2/size"


def _level_2() -> int:
    try:
        with open(_CACHE_FILE) as file:
            text = file.read().strip()
        return int(text.rstrip("KM")) * {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 1)
    except (OSError, ValueError):
        return 1 << 20


L2 = _level_2() if os.name == "posix" else 1 << 20

# A parallel region costs 1.5 to 3 us. Work below about ten times that stays on one thread.
# Element-wise kernels do about 1 element/ns (a polynomial activation) to 4 (a sum).
PARALLEL_ELEMENTS = 4_096
# What reads numbers that other threads wrote waits for the caches, so it is worth sharing from this many on
PARALLEL_TRANSFERS = 1_000
# Bytes that a copy moves in the time of an element
COPY_BYTES = 32
# Rows of so many bytes, such as sequences, are work for several threads, few as they may be
LONG_ROW_BYTES = 1 << 14
# Up to this many bytes NumPy copies or fills sooner than the records of a kernel's call are made, which takes 20 us
EAGER_COPY_BYTES = 1 << 19
# From this many bytes on a prediction's threads fetch their own inputs: the 10 ns that a line takes that another core
# has just written, or 70 where the cores are far apart, are then more than the call of a kernel
FETCH_BYTES = 1 << 16
# A product does some 100 float32 operations/ns on one thread, a small one half of that.
PARALLEL_FLOPS = 200_000

# Up to this many multiplications a plain loop beats the 0.1 to 0.2 us that packing and edges, or BLAS's call, cost
TINY_PRODUCT = 256

# Most steps of the summed dimension between two passes over C, half of it in float64: a tile of A, 12 x 512 float32,
# takes 24 of the 32 KB of a first-level cache
PRODUCT_DEPTH = 512
# Tiles of a transposed A are copied where so many columns of B meet them: its rows, a step of the sum each, lie far
# apart, and only a few lines at such places find room in the first-level cache. So many tiles at once: of each row some
# lines that follow each other are read, and together the copies take a fifth of the second-level cache
COPIED_FOR_COLUMNS, COPIED_TILES = 128, max(4, L2 >> 17)
# B is packed where its rows are so many bytes apart, a page for two of them, and so many rows of A and steps meet them.
# On some processors a product with what is not takes twice the time
FAR_ROWS, PACKED_FOR_ROWS, PACKED_FROM_DEPTH = 2048, 128, 64
# Panels of B, a line or two wide, that are packed at once: what is read of a row are some lines that follow each other
PACKED_PANELS = 4
# A larger B of a product on its own is packed by blocks that stay in the second-level cache, by each thread for itself
PACKED_BYTES = 2 * L2
# Part of B that is gone through for one panel of A after the other
PRODUCT_BLOCK_BYTES = L2 // 2
# Rows of A this many bytes apart, or a multiple of it, share so few sets of the first-level cache that a
# panel of them does not stay there
CLASHING_STRIDE = 4096

# BLAS does products where it takes less than this share of the time of our own: less would not pay for what is done in
# the tiles' epilogue
BLAS_SHARE = 0.9
# Turns of each in a measurement; measurements that must agree on BLAS, and seconds between them
CHOICE_TURNS, CHOICE_TIMES, CHOICE_PAUSE = 7, 5, 0.05

# A matrix of more bytes than this is gone through once, in the order of its memory, where it meets one row
STREAMED_BYTES = L2 // 2

# An element-wise task is large enough to forget its start, small enough to balance
CHUNK_ELEMENTS = 16_384
# Tasks per thread of those kernels: evens out a thread that the system interrupts
TASKS_PER_THREAD = 1

# Rows that go through a whole chain of row-wise kernels before the next ones do (fusion.py): their activations stay
# in the second-level cache, there are enough of them that a product's start does not count, and they are whole tiles
TILE_ROWS = 384
# Fewer rows than this for each thread are not worth a thread
THREAD_ROWS_MIN = 32
# What a chain must take, in ns by the rates above, to be worth sharing: about ten times the cost of that
PARALLEL_NS = 2_000

# dW: up to this many elements each task sums over its own rows of the batch, which are in its cache and no other's,
# into its own copy of dW; above, each task does its own rows of W.
SPLIT_BATCH_ELEMENTS = 65_536
# ... and up to this many where each task has so many rows that adding up the copies does not count
SPLIT_LARGE_ELEMENTS, SPLIT_LARGE_ROWS = 300_000, 1_024

# Up to this many threads and weights, each thread has and updates all of them itself (copies.py): what a thread does
# of the others' work is then less than the way of their lines to it, and all of it stays in the second-level cache
OWN_COPIES = 4
OWN_ELEMENTS = 16_384
# To bring weights there and back takes as long as this saves in so many steps
OWN_STEPS = 8

# A product of tiles whose results are no larger than this asks for the next one's memory; more would push out its own
CLAIMED_BYTES = L2 // 4
# A gradient of more bytes than this is worth an update of its weights while parts of this size are in a near cache ...
UPDATE_BYTES = L2 // 8
# ... unless its product takes so many times the time of the update (some 3 bytes/ns) that it does not matter
UPDATE_SHARE = 50

# Windows whose gradients a convolution's weights are added up over at a time: these, some 128 bytes each, and their
# pixels stay in the first-level cache while the rows of the weights' gradient go by
WINDOWS_AT_ONCE = 112

# Winograd's convolution takes half the time of the other products with 64 channels and more, and as long with 8. It
# pays from so many channels on, and tiles of an image, and of a batch, which also has the weights to transform; while
# the transformed weights are of so many bytes at most; and where as large a share of the tiles' pixels is used
WINOGRAD_CHANNELS, WINOGRAD_TILES, WINOGRAD_BATCH_TILES = 12, 4, 64
WINOGRAD_WEIGHTS, WINOGRAD_USED = 4 * L2, 0.65
# Bytes of what becomes of some rows of tiles, for each thread
WINOGRAD_BYTES = L2 // 4

# Queries and keys of a tile of scores: with what the products of a head pack, a few of them fit the second-level cache
ATTENTION_QUERIES, ATTENTION_KEYS = 64, 256
# Tasks of attention for each thread: with a causal mask some are longer than others
ATTENTION_TASKS = 4
# Rows that go through a recurrent layer's steps together: whole tiles of a product, and few enough that a step's gates
# stay in the second-level cache
SEQUENCE_ROWS = 96
# Rows of all its steps that are multiplied with the inputs' weights at once, and so many bytes of gates at most
SEQUENCE_BLOCK_ROWS = 256
SEQUENCE_BLOCK_BYTES = L2 // 2


@dataclass(frozen=True)
class Tiles:
    """How the rows of a batch are cut, the same way for all kernels that work row by row.

    Attributes
    ----------
    rows : int
        All rows.
    tile : int
        Rows of a tile; the last one may be shorter.
    per_task : int
        Tiles of a task, which does them one after the other.
    """

    rows: int
    tile: int
    per_task: int = 1

    @property
    def number(self) -> int:
        """Tiles."""
        return -(-self.rows // self.tile)

    @property
    def tasks(self) -> int:
        """Tasks."""
        return -(-self.number // self.per_task)


def row_tiles(rows: int, threads: int) -> Tiles:
    """Equal tiles of up to `TILE_ROWS` rows, a multiple of 4; one task for each thread that has enough rows."""
    tasks = max(1, min(threads, rows // THREAD_ROWS_MIN))
    each = -(-rows // (tasks * 4)) * 4
    per_task = -(-each // TILE_ROWS)
    return Tiles(rows, max(1, min(rows, -(-each // (per_task * 4)) * 4)), per_task)


def copy_tiles(rows: int, nbytes: int, threads: int) -> Tiles:
    """Tiles of rows of so many bytes that are only moved: as all kernels have them, but a few long ones are shared."""
    tiles = row_tiles(rows, threads)
    if tiles.tasks >= threads or nbytes < LONG_ROW_BYTES:
        return tiles
    return Tiles(rows, -(-rows // threads))


def sequence_tiles(rows: int, threads: int) -> Tiles:
    """Tiles of the rows of a recurrent layer; 4 rows take a product no longer than one."""
    tasks = max(1, min(threads, -(-rows // 4)))
    each = -(-rows // tasks)
    per_task = -(-each // SEQUENCE_ROWS)
    return Tiles(rows, min(rows, -(-each // (per_task * 4)) * 4), per_task)


def sequence_block(steps: int, tile: int, row_bytes: int) -> int:
    """Steps of a recurrent layer whose inputs are multiplied at once; a step's gates are so many bytes a row."""
    rows = min(SEQUENCE_BLOCK_ROWS, SEQUENCE_BLOCK_BYTES // row_bytes)
    return max(1, min(steps, rows // tile))


def product_rows(rows: int, threads: int) -> Tiles:
    """One tile a thread, for a product on its own."""
    tile = -(-rows // threads)
    return Tiles(rows, max(1, min(rows, -(-tile // 4) * 4)))


def product_columns(columns: int, threads: int, width: int) -> Tiles:
    """The same for the columns of a product whose tiles are so many columns wide."""
    return Tiles(columns, -(-columns // (threads * width)) * width)


def splits_batch(elements: int, rows: int, threads: int) -> bool:
    """Whether each task sums up a gradient of so many elements over its own rows of a batch."""
    large = elements <= SPLIT_LARGE_ELEMENTS and rows >= SPLIT_LARGE_ROWS * threads
    return elements <= SPLIT_BATCH_ELEMENTS or large


def image_tiles(images: int, threads: int) -> Tiles:
    """One image a tile; a task for each thread."""
    return Tiles(images, 1, -(-images // max(1, min(threads, images))))


def tiled(x: Any, threads: int) -> tuple[Any, Tiles, int]:
    """An array as kernels that work row by row see it, its tiles, and elements of one.

    Images (n, height, width, channels) go one by one; of all others the axes but the last make up the rows, as for
    products.
    """
    if x.ndim == 4:
        return x, image_tiles(len(x), threads), x.size // len(x)
    matrix = x.reshape(-1, x.shape[-1])
    tiles = row_tiles(len(matrix), threads)
    return matrix, tiles, tiles.tile * x.shape[-1]


def update_tiles(rows: int, nbytes: int, nanoseconds: float, threads: int) -> Tiles | None:
    """Rows of a gradient of `nbytes`, whose product takes so long, that are updated at once; ``None``: all later."""
    if nbytes <= UPDATE_BYTES or nanoseconds > UPDATE_SHARE * nbytes / 3:
        return None
    number = threads * -(-nbytes // (threads * UPDATE_BYTES))
    return Tiles(rows, -(-rows // (number * 4)) * 4)


def product_ns(m: int, n: int, k: int) -> float:
    """About what a product takes on one thread."""
    return 2 * m * n * k / 80


def chunks(size: int, threads: int) -> tuple[int, int]:
    """Elements per task and number of tasks of an element-wise kernel."""
    if threads == 1 or size < PARALLEL_ELEMENTS:
        return max(size, 1), 1
    tasks = max(min(threads * TASKS_PER_THREAD, -(-size // CHUNK_ELEMENTS)), threads)
    # A multiple of 64 elements: no two tasks write to one cache line, and Philox blocks of 4 stay whole
    chunk = -(-size // (tasks * 64)) * 64
    return chunk, -(-size // chunk)


def row_chunks(rows: int, columns: int, threads: int) -> tuple[int, int]:
    """Rows per task and number of tasks of a kernel that works row by row."""
    if threads == 1 or rows * columns < PARALLEL_ELEMENTS or rows < 2:
        return max(rows, 1), 1
    tasks = min(rows, threads * TASKS_PER_THREAD)
    tile = -(-rows // tasks)
    return tile, -(-rows // tile)
