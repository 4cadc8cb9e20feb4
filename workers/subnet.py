"""The score that a StreetVision validator would give: its windows, its rounding and its edge cases, one push at a time.

Source: natixnetwork/streetvision-subnet at 28a1755, natix/validator/miner_performance_tracker.py and reward.py.
"""

import math
from collections import Counter, deque

#: A response that never came (time-out, void, skipped position); it takes its slot in the windows.
NO_ANSWER = -1.0
MCC_WINDOW = 100
ACCURACY_WINDOW = 10
REWARD_EXPONENT = 3.0


class SubnetScore:
    """One miner's figures at one validator, over its responses in the order in which they are pushed; O(1) a push."""

    def __init__(self) -> None:
        self._long = _Window(MCC_WINDOW)
        self._short = _Window(ACCURACY_WINDOW)
        self._latest = NO_ANSWER

    def push(self, label: int, prediction: float) -> None:
        """Takes one response.

        Args:
            label: 1 roadwork, 0 none.
            prediction: P(roadwork), or NO_ANSWER. Anything else is scored as the validator does it: what rounds to
                neither 0 nor 1 is a class of its own, NaN and infinity void the window that they are in.

        Raises:
            ValueError: the label is neither 0 nor 1.
        """
        if label not in (0, 1):
            raise ValueError(f"the subnet's labels are 0 and 1, not {label}")
        self._long.push(label, prediction)
        self._short.push(label, prediction)
        self._latest = prediction

    @property
    def mcc(self) -> float:
        """MCC of the last 100 responses, in [0, 1]: negative ones and undefined ones count as 0."""
        return self._long.mcc

    @property
    def accuracy(self) -> float:
        """Share of right ones among those of the last 10 responses that were answered, in [0, 1]; 0 if none was."""
        return self._short.accuracy

    @property
    def reward(self) -> float:
        """(0.5 MCC + 0.5 accuracy)^3, in [0, 1]; 0 while the latest response is missing or outside [0, 1]."""
        if self._latest < 0 or self._latest > 1:
            return 0.0
        return float((0.5 * self.mcc + 0.5 * self.accuracy) ** REWARD_EXPONENT)


class _Window:
    """Sums over the last ``size`` responses, from which accuracy and MCC follow without looking at them again."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._responses: deque[tuple[int, float]] = deque()
        # Labels and rounded predictions by class; more than two classes of the latter once something is out of range.
        self._labels = [0, 0]
        self._classes: Counter[int] = Counter()
        self._sum_of_squares = 0
        self._right = 0
        self._not_finite = 0

    def push(self, label: int, prediction: float) -> None:
        # First the window, then the missing answers: they take a slot.
        self._responses.append((label, prediction))
        self._count(label, prediction, +1)
        if len(self._responses) > self._size:
            self._count(*self._responses.popleft(), -1)

    def _count(self, label: int, prediction: float, sign: int) -> None:
        if prediction == NO_ANSWER:
            return
        if not math.isfinite(prediction):
            self._not_finite += sign
            return
        # Half to even like numpy's round: 0.5 is a 0, 1.5 a 2.
        kind = round(prediction)
        self._labels[label] += sign
        self._right += sign * (kind == label)
        self._sum_of_squares -= self._classes[kind] ** 2
        self._classes[kind] += sign
        self._sum_of_squares += self._classes[kind] ** 2
        if not self._classes[kind]:
            del self._classes[kind]

    @property
    def accuracy(self) -> float:
        answered = sum(self._labels)
        # The validator's scikit-learn refuses the whole window that has a NaN in it: all its figures are 0 then.
        return self._right / answered if answered and not self._not_finite else 0.0

    @property
    def mcc(self) -> float:
        """The multi-class form: J. Gorodkin, Computational Biology and Chemistry 28, 2004."""
        if self._not_finite:
            return 0.0
        zeros, ones = self._labels
        n = zeros + ones
        square = (n * n - self._sum_of_squares) * (n * n - zeros * zeros - ones * ones)
        if square == 0:
            return 0.0
        covariance = n * self._right - zeros * self._classes[0] - ones * self._classes[1]
        return max(0.0, min(1.0, covariance / math.sqrt(square)))
