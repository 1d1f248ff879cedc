"""The recommenders of bigkern.models.recommender in NumPy, forward and backward, from the reference ops."""

import numpy as np

from .tape import Tape


def factorization_loss_and_gradients(parameters, users, items, ratings):
    """(mean squared error, predicted ratings [batch], gradients by the parameters' names)."""
    user_vectors, item_vectors = parameters["user_vectors.weight"][users], parameters["item_vectors.weight"][items]
    biases = parameters["user_biases.weight"][users, 0] + parameters["item_biases.weight"][items, 0]
    predicted = parameters["mean"] + biases + (user_vectors * item_vectors).sum(1)
    error = predicted - ratings
    grad = 2 * error / len(ratings)
    gradients = {name: np.zeros_like(value) for name, value in parameters.items() if name != "mean"}
    np.add.at(gradients["user_vectors.weight"], users, grad[:, None] * item_vectors)
    np.add.at(gradients["item_vectors.weight"], items, grad[:, None] * user_vectors)
    np.add.at(gradients["user_biases.weight"], (users, 0), grad)
    np.add.at(gradients["item_biases.weight"], (items, 0), grad)
    return (error**2).mean(), predicted, gradients


def click_loss_and_gradients(parameters, starts, categories, numbers, clicks):
    """(mean binary cross-entropy, logits [batch], gradients by the parameters' names); starts: see ClickNetwork."""
    tape = Tape(parameters, len(clicks), 1)
    places = categories + starts
    vectors = parameters["vectors.weight"][places]
    x = np.concatenate((vectors.reshape(len(clicks), -1), numbers), axis=1)
    ways_back = []
    hidden = len({name.split(".")[1] for name in parameters if name.startswith("perceptron.")})
    for i in range(hidden):
        x, back = tape.linear(x, f"perceptron.{i}", "relu")
        ways_back.append(back)
    logits, back_output = tape.linear(x, "output")
    logits = logits[:, 0]
    loss = (np.maximum(logits, 0) - logits * clicks + np.log1p(np.exp(-np.abs(logits)))).mean()
    grad = back_output(((1 / (1 + np.exp(-logits)) - clicks) / len(clicks))[:, None])
    for back in reversed(ways_back):
        grad = back(grad)
    width = vectors[0].size
    np.add.at(tape.gradients["vectors.weight"], places, grad[:, :width].reshape(vectors.shape))
    return loss, logits, tape.gradients
