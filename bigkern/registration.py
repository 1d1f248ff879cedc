"""How an op's kernels become PyTorch operators: schema, fake impl, autograd, autocast, and a short way in eager mode.

A `Kernel` is one operator `torch.ops.bigkern.<name>`. Calling it in plain eager mode skips PyTorch's dispatcher (half
of the cost of a small call); under torch.compile, export, autocast, tensor subclasses or any torch mode it goes through
`torch.ops`, where all of those see it.
"""

import os
from collections.abc import Callable

import torch
from torch._C import _is_any_autocast_enabled, _len_torch_dispatch_stack, _len_torch_function_stack
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from . import dispatch
from .backends import cpu

LIBRARY = torch.library.Library("bigkern", "DEF")
# Every kernel by name, in the order of definition.
KERNELS: dict[str, "Kernel"] = {}
PLAIN_TENSORS = frozenset((torch.Tensor, torch.nn.Parameter))
PLAIN_OTHERS = frozenset((str, bool, int, float, type(None), torch.dtype))
DEVICE_KEYS = ("CPU", "CUDA")
AUTOCAST_KEYS = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}

# Tests set this: an element that a kernel forgets to write then shows up as NaN (or -77 in integers).
POISON_OUTPUTS = os.environ.get("BIGKERN_POISON_OUTPUTS", "0") == "1"


def no_modes() -> bool:
    """True where nothing of torch's is switched on that wants to see the operators that are called."""
    return not (
        is_compiling()
        or _len_torch_dispatch_stack()
        or _len_torch_function_stack()
        or _is_any_autocast_enabled()
        or forward_ad._current_level >= 0
        or peek_interpreter_stack()
    )


def are_plain(args) -> bool:
    """True where a kernel may read the arguments' memory: no subclass of Tensor, and no lazily negated view, whose
    memory holds the values with the other sign."""
    for arg in args:
        if type(arg) in PLAIN_TENSORS:
            if arg.is_neg():
                return False
        elif type(arg) is list:
            if not are_plain(arg):
                return False
        elif type(arg) not in PLAIN_OTHERS and isinstance(arg, torch.Tensor):
            return False
    return True


def autocast_enabled(device_type: str) -> bool:
    """torch.is_autocast_enabled, which raises for the meta device."""
    return device_type != "meta" and torch.is_autocast_enabled(device_type)


def too_small(op: str, reason: str, *tensors) -> bool:
    """True where an op should call PyTorch's own function although a kernel of ours could run: eagerly, on CPU tensors,
    on `auto`. The op asks when its own measurement says that a call of this size costs more than it saves."""
    return tensors[0].is_cpu and no_modes() and are_plain(tensors) and dispatch.leave_to_torch(op, "cpu", reason)


def short_way():
    """The module whose functions do a whole op in one C++ call (csrc/short_way.h). None where a mode of torch, a forced
    backend or `explain` has a say in the call."""
    if no_modes() and dispatch.is_auto() and cpu.unavailable() is None:
        return cpu.module()
    return None


def _no_outputs(*args):
    return ()


class Kernel:
    """One operator with its implementations.

    An operator that works in place says so in its schema, "name(Tensor(a!)[] params, ...) -> ()": it returns nothing,
    has no derivative, and what it changes it changes in the arguments marked with "!", which are lists of tensors.

    Args:
        schema: "name(Tensor input, ...) -> (Tensor, ...)"; always several outputs or one, never depending on flags.
        module: the op's name, which is also the name of its file in every folder.
        allocate: the outputs, empty, from the inputs. Also the fake implementation, so shapes are stated once. Left out
            where the operator works in place.
        torch: the same function in differentiable PyTorch operators.
        supports: per backend, a function of the arguments that gives None or the reason why it cannot run them
            (or None in place of the function: it can run all of them). "reference" and "torch" are always there.
        torch_is_faster: a function of the arguments: the measurement that says so, or None.
        setup_context, backward: as in torch.autograd.Function. A kernel without them is not differentiable, unless
            `recompute` says that its derivative is taken through `torch`, which is how backward kernels get second
            derivatives.
        autocast: None, "lower_precision" (cast floating inputs to autocast's dtype) or "float32"; a dict by device type
            where PyTorch's rule is not the same on all.
    """

    def __init__(
        self,
        schema: str,
        *,
        module: str,
        torch: Callable,
        allocate: Callable = _no_outputs,
        supports: dict[str, Callable | None],
        torch_is_faster: Callable | None = None,
        setup_context: Callable | None = None,
        backward: Callable | None = None,
        recompute: bool = False,
        autocast: str | dict[str, str] | None = None,
    ):
        self.name = schema.partition("(")[0]
        self.schema = schema
        self._takes_dtype = "ScalarType" in schema
        self.module = module
        self.allocate = allocate
        self.torch = torch
        self.supports = {"reference": None, "torch": None, **supports}
        self.torch_is_faster = torch_is_faster
        if recompute:
            setup_context, backward = _save_all, _backward_through(torch)
        self._differentiable = backward is not None
        self._register(setup_context, backward, autocast)

    def _register(self, setup_context, backward, autocast):
        KERNELS[self.name] = self
        LIBRARY.define(self.schema)
        self.op = getattr(torch.ops.bigkern, self.name).default
        self._num_returns = len(self.op._schema.returns)
        # Places of the lists that it changes in place.
        self.mutated = [
            place for place, arg in enumerate(self.op._schema.arguments) if arg.alias_info and arg.alias_info.is_write
        ]
        for key in DEVICE_KEYS:
            LIBRARY.impl(self.name, self._implementation, key)
        torch.library.register_fake(f"bigkern::{self.name}", self._fake, lib=LIBRARY)
        function = _autograd_function(self.name, self._implementation, setup_context, backward)
        # Function.apply looks for functorch first, which `no_modes` has ruled out, for a third of a call's cost.
        self._apply_directly = super(torch.autograd.Function, function).apply
        self._through_dispatcher = _autograd_function(self.name, _below_autograd(self.op), setup_context, backward)
        LIBRARY.impl(self.name, self._autograd_kernel, "Autograd")
        rules = autocast if isinstance(autocast, dict) else dict.fromkeys(AUTOCAST_KEYS, autocast)
        for device, key in AUTOCAST_KEYS.items():
            if rule := rules.get(device):
                LIBRARY.impl(self.name, _autocast_kernel(self.op, rule, device, key), key)

    def launch_arguments(self, args):
        """What a destination-passing kernel takes: all but dtypes, which its outputs carry already."""
        return [arg for arg in args if not isinstance(arg, torch.dtype)] if self._takes_dtype else args

    def allocate_outputs(self, args) -> tuple[torch.Tensor, ...]:
        outputs = self.allocate(*args)
        if POISON_OUTPUTS:
            for output in outputs:
                output.fill_(float("nan") if output.is_floating_point() else -77)
        return outputs

    def _returned(self, outputs):
        """`outputs` as PyTorch expects them: nothing, a tensor, or a tuple of several."""
        if self._num_returns > 1:
            return outputs
        return outputs[0] if outputs else None

    def _fake(self, *args):
        return self._returned(self.allocate(*args))

    def _implementation(self, *args):
        outputs = dispatch.run(self, args)
        for place in self.mutated:
            # Autograd must notice when a tensor that it has saved was changed.
            torch._C._increment_version(args[place])
        return self._returned(outputs)

    def _needs_grad(self, args) -> bool:
        if self._differentiable and torch.is_grad_enabled():
            for arg in args:
                if type(arg) not in PLAIN_OTHERS and arg.requires_grad:
                    return True
        return False

    def _autograd_kernel(self, *args):
        if self._differentiable and forward_ad._current_level >= 0:
            # Forward-mode derivatives: PyTorch's operators have the formulas.
            return self._returned(self.torch(*args))
        if self._needs_grad(args):
            return self._through_dispatcher.apply(*args)
        return _below_autograd(self.op)(*args)

    def __call__(self, *args):
        # Where this holds, calling the implementation cannot be told from going through torch's dispatcher.
        if not (no_modes() and are_plain(args)):
            return self.op(*args)
        if self._needs_grad(args):
            return self._apply_directly(*args)
        return self._implementation(*args)


def _below_autograd(op):
    def call(*args):
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    return call


def _autograd_function(name, call, setup_context, backward):
    """A torch.autograd.Function whose forward is `call`."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            outputs = call(*args)
            setup_context(ctx, args, outputs)
            # Backward may run on another thread, which does not see this thread's `use_backend`.
            ctx.bigkern_backend = dispatch.forced_backend()
            return outputs

        @staticmethod
        def backward(ctx, *grad_outputs):
            if ctx.bigkern_backend is None:
                return backward(ctx, *grad_outputs)
            with dispatch.use_backend(ctx.bigkern_backend):
                return backward(ctx, *grad_outputs)

    Function.__name__ = Function.__qualname__ = f"bigkern_{name}"
    return Function


def _save_all(ctx, inputs, output):
    tensors = [arg for arg in inputs if isinstance(arg, torch.Tensor)]
    ctx.save_for_backward(*tensors)
    ctx.others = [None if isinstance(arg, torch.Tensor) else (arg,) for arg in inputs]


def _backward_through(function):
    """The derivative of `function`, taken by PyTorch through its differentiable operators."""

    def backward(ctx, *grad_outputs):
        saved = iter(ctx.saved_tensors)
        inputs = [next(saved) if other is None else other[0] for other in ctx.others]
        return gradients_through(function, inputs, ctx.needs_input_grad, grad_outputs)

    return backward


def gradients_through(function, inputs, needs_input_grad, grad_outputs):
    """The gradients of `function`'s inputs, None where not needed, through PyTorch's differentiable operators.

    They are differentiable themselves where gradients are enabled. A grad_output may be None.
    """
    create_graph = torch.is_grad_enabled()
    inputs = list(inputs)
    with torch.enable_grad(), torch._C._DisableAutocast():
        # An alias for each place: the same tensor passed twice gets two gradients, not one doubled.
        wanted = [i for i, needed in enumerate(needs_input_grad) if needed]
        for i in wanted:
            inputs[i] = inputs[i].view_as(inputs[i])
        outputs = function(*inputs)
        pairs = [(o, g) for o, g in zip(outputs, grad_outputs, strict=True) if o.requires_grad and g is not None]
        grads = [None] * len(inputs)
        if pairs:
            outputs, grad_outputs = zip(*pairs, strict=True)
            found = torch.autograd.grad(
                outputs, [inputs[i] for i in wanted], grad_outputs, allow_unused=True, create_graph=create_graph
            )
            for i, grad in zip(wanted, found, strict=True):
                grads[i] = grad
    return tuple(grads)


def _autocast_kernel(op, rule, device, key):
    """The kernel for an autocast dispatch key: casts floating inputs, then calls on below autocast."""
    exclude = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def kernel(*args):
        dtype = torch.float32 if rule == "float32" else torch.get_autocast_dtype(device)
        args = [cast_floating(arg, dtype) for arg in args]
        with torch._C._ExcludeDispatchKeyGuard(exclude):
            return op(*args)

    return kernel


def cast_floating(value, dtype):
    """float16, bfloat16 and float32 tensors in `dtype`; float64 and everything else untouched, as torch's autocast."""
    if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float64:
        return value.to(dtype)
    return value
