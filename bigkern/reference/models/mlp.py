"""The ReLU perceptron with softmax cross-entropy in NumPy, forward and backward."""

from ..array_module import array_module


def mlp_forward(weights, biases, input):
    """(logits [batch, classes], activations of every layer, input first)."""
    xp = array_module(input)
    activations = [input]
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        z = activations[-1] @ weight.T + bias
        activations.append(z if i == len(weights) - 1 else xp.maximum(z, 0))
    return activations[-1], activations


def mlp_loss(logits, target):
    """Mean cross-entropy of class indices [batch], in nats."""
    xp = array_module(logits)
    shifted = logits - logits.max(1, keepdims=True)
    log_probabilities = shifted - xp.log(xp.exp(shifted).sum(1, keepdims=True))
    return -log_probabilities[xp.arange(len(target)), target].mean()


def mlp_backward(weights, biases, input, target):
    """Gradients of `mlp_loss` for every weight and bias: (grad_weights, grad_biases)."""
    xp = array_module(input)
    logits, activations = mlp_forward(weights, biases, input)
    probabilities = xp.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    one_hot = xp.eye(logits.shape[1])[target]
    grad_z = (probabilities - one_hot) / len(target)
    grad_weights, grad_biases = [], []
    for i in reversed(range(len(weights))):
        grad_weights.insert(0, grad_z.T @ activations[i])
        grad_biases.insert(0, grad_z.sum(0))
        if i:
            grad_z = (grad_z @ weights[i]) * (activations[i] > 0)
    return grad_weights, grad_biases
