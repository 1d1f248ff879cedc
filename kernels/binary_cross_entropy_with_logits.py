"""Binary cross entropy of contiguous matrices of logits; weights are the vectors that their elements repeat."""

from .pointwise_loss import launch_backward, launch_forward

KIND = "binary_cross_entropy"


def binary_cross_entropy_with_logits_forward(input, target, weight, pos_weight, reduction, loss):
    launch_forward(input, target, weight, pos_weight, reduction, KIND, loss)


def binary_cross_entropy_with_logits_backward(
    grad_loss, input, target, weight, pos_weight, reduction, needs_target_grad, grad_input, grad_target
):
    launch_backward(
        grad_loss, input, target, weight, pos_weight, reduction, KIND, needs_target_grad, grad_input, grad_target
    )
