"""The recommenders of bigkern.models.recommender in NumPy, forward and backward, from the reference ops."""

from ..array_module import array_module
from ..embedding import embedding_backward
from .tape import Tape, binary_cross_entropy


def factorization_loss_and_gradients(parameters, users, items, ratings):
    """(mean squared error, predicted ratings [batch], gradients by the parameters' names)."""
    user_vectors, item_vectors = parameters["user_vectors.weight"][users], parameters["item_vectors.weight"][items]
    biases = parameters["user_biases.weight"][users, 0] + parameters["item_biases.weight"][items, 0]
    predicted = parameters["mean"] + biases + (user_vectors * item_vectors).sum(1)
    error = predicted - ratings
    grad = 2 * error / len(ratings)
    of_vectors = {
        "user_vectors.weight": (users, grad[:, None] * item_vectors),
        "item_vectors.weight": (items, grad[:, None] * user_vectors),
        "user_biases.weight": (users, grad[:, None]),
        "item_biases.weight": (items, grad[:, None]),
    }
    gradients = {
        name: embedding_backward(of_rows, rows, len(parameters[name]), -1, False)[0]
        for name, (rows, of_rows) in of_vectors.items()
    }
    return (error**2).mean(), predicted, gradients


def click_loss_and_gradients(parameters, starts, categories, numbers, clicks):
    """(mean binary cross-entropy, logits [batch], gradients by the parameters' names); starts: see ClickNetwork."""
    xp = array_module(numbers)
    tape = Tape(parameters, len(clicks), 1)
    places = categories + starts
    vectors = parameters["vectors.weight"][places]
    x = xp.concatenate((vectors.reshape(len(clicks), -1), numbers), axis=1)
    x, back_hidden = tape.relu_layers(x, "perceptron")
    logits, back_output = tape.linear(x, "output")
    logits = logits[:, 0]
    loss, grad_logits = binary_cross_entropy(logits, clicks)
    grad = back_hidden(back_output(grad_logits[:, None]))
    table, width = parameters["vectors.weight"], vectors[0].size
    of_rows = grad[:, :width].reshape(-1, table.shape[1])
    tape.gradients["vectors.weight"] += embedding_backward(of_rows, places.reshape(-1), len(table), -1, False)[0]
    return loss, logits, tape.gradients
