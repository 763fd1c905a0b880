"""The loop of Keras 2 that three of the optimizers share, and its decay of the learning rate."""

from tests.rules.notation import GRADIENTS


def sgd(p=1.0, lr=0.1, momentum=0.9, decay=0.1, nesterov=False):
    v = 0.0
    for iteration, g in enumerate(GRADIENTS):
        rate = lr * (1.0 / (1.0 + decay * iteration))
        v = momentum * v - rate * g
        p = p + momentum * v - rate * g if nesterov else p + v
        yield p


def slowing(done):
    """Return the learning rate of `sgd` after some updates."""
    return 0.1 / (1 + 0.1 * done)
