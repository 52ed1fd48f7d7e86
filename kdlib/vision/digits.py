"""Real handwritten digits that need no download: scikit-learn ships them."""

import numpy as np
import torch
from sklearn import datasets
from sklearn.model_selection import train_test_split

from kdlib.data import Examples, Splits


def load_digits() -> Splits:
    """1,797 images of handwritten digits, 8×8, split 800 / 497 / 500, always the same way.

    Images are (N, 1, 8, 8) float32 in [0, 1]: the share of ink in each 4×4 block of a 32×32 scan. Digits of
    one writer can be in several parts: scikit-learn does not say which of the 13 wrote which.

    Source: Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI Machine Learning
    Repository, doi 10.24432/C50P49, CC BY 4.0; its test part, as `sklearn.datasets.load_digits`.
    """
    pixels, labels = datasets.load_digits(return_X_y=True)
    # train_test_split draws from numpy's frozen RandomState: the same split on every version.
    def cut(index: np.ndarray, size: int) -> list[np.ndarray]:
        return train_test_split(index, test_size=size, random_state=0, stratify=labels[index])

    rest, test = cut(np.arange(len(labels)), 500)
    train, validation = cut(rest, 497)

    def part(index: np.ndarray) -> Examples:
        images = torch.tensor(pixels[index] / 16, dtype=torch.float32).view(-1, 1, 8, 8)
        return Examples(images, torch.tensor(labels[index]), torch.tensor(index))

    return Splits(part(train), part(validation), part(test), tuple("0123456789"))
