"""The two trivial baselines beside every figure: colours alone, a thumbnail alone, each with a logistic regression."""

import numpy as np
from PIL import Image


def histogram(image: Image.Image) -> np.ndarray:
    """Shares of 4 x 4 x 4 colours."""
    pixels = np.asarray(image.resize((160, 160), Image.Resampling.BOX)) // 64
    cells = pixels[..., 0] * 16 + pixels[..., 1] * 4 + pixels[..., 2]
    return np.sqrt(np.bincount(cells.ravel(), minlength=64) / cells.size)


def thumbnail(image: Image.Image) -> np.ndarray:
    """The photo at 16 x 16 pixels."""
    return np.asarray(image.resize((16, 16), Image.Resampling.BOX), dtype=np.float64).ravel() / 255


def logistic(
    inputs: np.ndarray, labels: np.ndarray, strength: float = 1.0, rounds: int = 40
) -> tuple[np.ndarray, float, np.ndarray, np.ndarray]:
    """Ridge logistic regression by Newton steps on standardised inputs, both classes weighing the same."""
    mean, spread = inputs.mean(0), inputs.std(0) + 1e-9
    x = np.hstack([(inputs - mean) / spread, np.ones((len(inputs), 1))])
    weight = np.where(labels == 1, 0.5 / labels.mean(), 0.5 / (1 - labels.mean()))
    penalty = np.diag([strength] * (x.shape[1] - 1) + [1e-6])
    w = np.zeros(x.shape[1])
    for _ in range(rounds):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        slope = x.T @ (weight * (p - labels)) + penalty @ w
        curve = (x * (weight * p * (1 - p))[:, None]).T @ x + penalty
        step = np.linalg.solve(curve, slope)
        w -= step
        if np.abs(step).max() < 1e-6:
            break
    return w[:-1], float(w[-1]), mean, spread


def scores(kind: str, fitted_on: list[Image.Image], labels: np.ndarray, photos: list[Image.Image]) -> np.ndarray:
    """What a baseline, fitted on one list of photos, says of another."""
    feature = {"colour histogram": histogram, "16-px thumbnail": thumbnail}[kind]
    w, b, mean, spread = logistic(np.stack([feature(image) for image in fitted_on]), labels)
    return (np.stack([feature(image) for image in photos]) - mean) / spread @ w + b
