"""From a picture to feature maps: what extraction and prediction share."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

from engine.images import preprocess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from engine.backbone import Backbone
    from engine.images import JoinedPreprocessing, Preprocessing
    from engine.picture import Picture
    from engine.views import View

__all__ = ["feature_maps", "in_order", "network_inputs"]

Item = TypeVar("Item")
Result = TypeVar("Result")

# Enough finished work in hand that a slow picture never starves the other worker, few enough that
# memory stays at a handful of feature maps.
ITEMS_IN_FLIGHT_PER_WORKER = 4


def network_inputs(
    picture: Picture, preprocessing: Preprocessing | JoinedPreprocessing
) -> tuple[NDArray[np.uint8], ...]:
    """Preprocess a picture for a backbone, or for each of joined ones.

    Parameters
    ----------
    picture : Picture
        From :func:`engine.images.read_picture`.
    preprocessing : Preprocessing or JoinedPreprocessing
        How the picture becomes the input of each network.

    Returns
    -------
    tuple of uint8 arrays, each (1, height, width)
        One for each network.
    """
    return tuple(preprocess(picture, rules) for rules in preprocessing.parts)


def feature_maps(
    backbone: Backbone, inputs: Sequence[NDArray[np.uint8]], view: View | None = None
) -> dict[str, NDArray[np.float32]]:
    """Run a backbone, or joined ones, over one picture or a view of it.

    Parameters
    ----------
    backbone : Backbone
        Loaded network.
    inputs : sequence of uint8 arrays, each (1, height, width)
        From :func:`network_inputs`.
    view : View, optional
        From :func:`engine.views.draw_views`; the picture itself if left out.

    Returns
    -------
    dict of str to float32 (1, c, h, w)
        Feature maps by tap.
    """
    seen = inputs
    if view is not None:
        from engine.views import apply_view

        seen = [apply_view(image, view) for image in inputs]
    return backbone.infer_parts([image[np.newaxis] for image in seen])


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], n_workers: int
) -> Iterator[Result]:
    """Yield the results of a few threads in the order of the items.

    Decoding, inference and pooling all release the interpreter lock, so each thread keeps a core
    busy with whatever stage its image is in: stages overlap without queues between them.

    Parameters
    ----------
    work : callable
        Called as ``work(item)`` in one of the threads; what it raises is raised here.
    items : iterable
        May be endless: at most a few items a thread are taken ahead of the results.
    n_workers : int
        Number of threads; with one, the caller's does the work.

    Yields
    ------
    object
        ``work(item)`` for each item.
    """
    if n_workers == 1:
        yield from map(work, items)
        return
    # Importing threads takes longer than pooling a picture's maps.
    from collections import deque
    from concurrent.futures import ThreadPoolExecutor

    pending: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(n_workers, thread_name_prefix="hilum")
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) >= ITEMS_IN_FLIGHT_PER_WORKER * n_workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
