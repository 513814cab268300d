"""The learning rate and the decay of averaged weights, each a function of the step alone."""

import math

from ct3dlib.config import TrainSpec


def learning_rate(spec: TrainSpec, step: int) -> float:
    """Return the rate of an optimizer step, counted from 0.

    A line rises over `warmup_steps`; then half a cosine falls to `min_learning_rate` at `steps`
    (Loshchilov and Hutter, arXiv:1608.03983, equation 5 without restarts). `stop_at` does not bend
    it.
    """
    if step < spec.warmup_steps:
        return spec.learning_rate * (step + 1) / spec.warmup_steps
    done = (step - spec.warmup_steps) / max(1, spec.steps - spec.warmup_steps)
    low = spec.min_learning_rate
    return low + (spec.learning_rate - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def ema_decay(decay: float, step: int) -> float:
    """Return the decay of the averaged weights after a step, counted from 0.

    It starts low, so that a short run forgets its initial weights: min(decay, (1 + n) / (10 + n))
    for n updates, as `num_updates` of TensorFlow's ExponentialMovingAverage.
    """
    return min(decay, (1 + step) / (10 + step))
