"""Four views from a place as one picture."""

import numpy as np

VIEW_SIZE = 480  # pixels
GAP = 5  # pixels between two views


def grid(views: np.ndarray) -> np.ndarray:
    """Views (4, size, size, 3) as one picture: front and right above back and left, a black gap between them."""
    size = views.shape[1]
    width, height = grid_size(size)
    whole = np.zeros((height, width, 3), np.uint8)
    for index, (row, column) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        top, left = row * (size + GAP), column * (size + GAP)
        whole[top : top + size, left : left + size] = views[index]
    return whole


def grid_size(view_size: int) -> tuple[int, int]:
    """Width and height in pixels of the picture of four views."""
    return (2 * view_size + GAP, 2 * view_size + GAP)
