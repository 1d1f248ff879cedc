"""What the losses that treat every element alone share: their arguments as matrices, and the frame of their kernels."""

import torch

from .registration import Kernel, too_small

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_tensors(op, **tensors):
    """Raises RuntimeError where a tensor (or None) is not floating or not on the first one's device."""
    (first_name, first), *_ = tensors.items()
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.dtype not in FLOATING:
            raise RuntimeError(f"{op}: {name} must be floating, got {tensor.dtype}")
        if tensor.device != first.device:
            raise RuntimeError(f"{op}: {name} is on {tensor.device}, {first_name} on {first.device}")


def check_reduction(reduction, names=("none", "mean", "sum")):
    if reduction not in names:
        raise ValueError(f"{reduction} is not a valid value for reduction")


def is_small(op, least, *tensors):
    """True where fewer than `least` elements are PyTorch's: a call then costs more than its kernel saves."""
    if tensors[0].numel() >= least:
        return False
    return too_small(
        op, f"PyTorch's own function measured faster below {least} elements (benchmarks/bench_{op}.py)", *tensors
    )


def as_matrix(tensor, shape, dtype):
    """A contiguous [batch, elements of a sample] of the shape and dtype; a scalar is a batch of one."""
    tensor = tensor.to(dtype).expand(shape)
    rows = shape[0] if len(shape) else 1
    return tensor.reshape(rows, torch.Size(shape[1:]).numel()).contiguous()


def as_period(weight, shape, dtype):
    """weight, broadcast to `shape`, as the contiguous vector that its elements in order repeat: often much shorter."""
    if weight is None:
        return None
    while weight.ndim and weight.shape[0] == 1:  # what the first dimensions repeat anyway
        weight = weight.squeeze(0)
    return weight.to(dtype).expand(shape[len(shape) - weight.ndim :]).reshape(-1).contiguous()


def repeated(period, like):
    """A vector from as_period in the shape of the matrix `like`."""
    if period is None:
        return None
    return period.repeat(like.numel() // max(period.numel(), 1)).view(like.shape)


def accumulate_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def reduce(losses, reduction):
    """The reduction of a matrix of losses."""
    if reduction == "mean":
        return losses.mean()
    if reduction == "batchmean":
        return losses.sum() / losses.shape[0]
    return losses.sum() if reduction == "sum" else losses


def share_of_element(grad_loss, input, reduction):
    """What of the loss's gradient reaches an element."""
    if reduction == "mean":
        return grad_loss / input.numel()
    return grad_loss / input.shape[0] if reduction == "batchmean" else grad_loss


def _triton_supports(input):
    return "float64 is left to PyTorch on a GPU" if input.dtype == torch.float64 else None


def pointwise_kernels(op, arguments, loss_of, gradients_of):
    """(op_forward, op_backward): kernels over contiguous matrices [batch, elements of a sample].

    Args:
        op: the op's name.
        arguments: their schema after input and target: tensors, then "str reduction", then options.
        loss_of: (input, target, *arguments but reduction) -> the losses, in PyTorch's operators.
        gradients_of: the same arguments -> (d loss / d input, d loss / d target), each differentiable itself.
    """
    place = 2 + [part.strip().split()[-1] for part in arguments.split(",")].index("reduction")
    count = 2 + len(arguments.split(","))

    def split(args):
        return args[:place] + args[place + 1 : count], args[place]

    def allocate_forward(*args):
        return (args[0].new_empty(args[0].shape if args[place] == "none" else ()),)

    def forward_torch(*args):
        tensors, reduction = split(args)
        acc = accumulate_dtype(args[0].dtype)
        losses = loss_of(*(t.to(acc) if isinstance(t, torch.Tensor) else t for t in tensors))
        return (reduce(losses, reduction).to(args[0].dtype),)

    def setup_context(ctx, inputs, output):
        ctx.tensors = [isinstance(arg, torch.Tensor) for arg in inputs]
        ctx.others = [arg for arg in inputs if not isinstance(arg, torch.Tensor)]
        ctx.save_for_backward(*(arg for arg in inputs if isinstance(arg, torch.Tensor)))

    def backward(ctx, grad_loss):
        saved, others = iter(ctx.saved_tensors), iter(ctx.others)
        args = [next(saved) if is_tensor else next(others) for is_tensor in ctx.tensors]
        needs_target_grad = ctx.needs_input_grad[1]
        grad_input, grad_target = backward_kernel(grad_loss.contiguous(), *args, needs_target_grad)
        return grad_input, grad_target if needs_target_grad else None, *(None,) * (count - 2)

    def allocate_backward(grad_loss, input, *rest):
        return input.new_empty(input.shape), input.new_empty(input.shape if rest[-1] else 0)

    def backward_torch(grad_loss, *args):
        tensors, reduction = split(args)
        acc, dtype = accumulate_dtype(args[0].dtype), args[0].dtype
        share = share_of_element(grad_loss.to(acc), args[0], reduction)
        grads = gradients_of(*(t.to(acc) if isinstance(t, torch.Tensor) else t for t in tensors))
        grad_target = (share * grads[1]).to(dtype) if args[-1] else args[0].new_empty(0)
        return (share * grads[0]).to(dtype), grad_target

    backward_kernel = Kernel(
        f"{op}_backward(Tensor grad_loss, Tensor input, Tensor target, {arguments}, bool needs_target_grad) "
        "-> (Tensor grad_input, Tensor grad_target)",
        module=op,
        allocate=allocate_backward,
        torch=backward_torch,
        supports={"cpu": None, "triton": lambda grad_loss, input, *_: _triton_supports(input)},
        recompute=True,
    )
    forward_kernel = Kernel(
        f"{op}_forward(Tensor input, Tensor target, {arguments}) -> Tensor",
        module=op,
        allocate=allocate_forward,
        torch=forward_torch,
        supports={"cpu": None, "triton": lambda input, *_: _triton_supports(input)},
        setup_context=setup_context,
        backward=backward,
        autocast="float32",
    )
    return forward_kernel, backward_kernel
