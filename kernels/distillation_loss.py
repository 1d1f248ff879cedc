"""Divergence of a student's softmax from its teacher's, both at a temperature; contiguous logits [N, C], row by row."""

import torch
import triton
import triton.language as tl

from .common import COMPILE_OPTIONS, block_size_for_row, num_warps_for, on_device_of

LARGEST_BLOCK = 4096
LOWEST = torch.finfo(torch.float32).min


@triton.jit
def distillation_loss_kernel(
    student_ptr,
    teacher_ptr,
    loss_ptr,
    statistics_ptr,
    num_classes,
    temperature,
    LOWEST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The loss of each row; largest logit and sum of exponentials of student and teacher."""
    row = tl.program_id(0).to(tl.int64)
    student_maximum = tl.full((BLOCK,), LOWEST, dtype=tl.float32)
    teacher_maximum = tl.full((BLOCK,), LOWEST, dtype=tl.float32)
    for first in range(0, num_classes, BLOCK):
        classes = first + tl.arange(0, BLOCK)
        mask = classes < num_classes
        student = tl.load(student_ptr + row * num_classes + classes, mask=mask, other=-float("inf")).to(tl.float32)
        teacher = tl.load(teacher_ptr + row * num_classes + classes, mask=mask, other=-float("inf")).to(tl.float32)
        student_maximum = tl.maximum(student_maximum, student)
        teacher_maximum = tl.maximum(teacher_maximum, teacher)
    student_max = tl.max(student_maximum, axis=0)
    teacher_max = tl.max(teacher_maximum, axis=0)

    student_sum = tl.zeros((BLOCK,), dtype=tl.float32)
    teacher_sum = tl.zeros((BLOCK,), dtype=tl.float32)
    cross = tl.zeros((BLOCK,), dtype=tl.float32)
    for first in range(0, num_classes, BLOCK):  # from the cache
        classes = first + tl.arange(0, BLOCK)
        mask = classes < num_classes
        student = tl.load(student_ptr + row * num_classes + classes, mask=mask, other=-float("inf")).to(tl.float32)
        teacher = tl.load(teacher_ptr + row * num_classes + classes, mask=mask, other=-float("inf")).to(tl.float32)
        student = (student - student_max) / temperature
        teacher = (teacher - teacher_max) / temperature
        teacher_exp = tl.exp(teacher)
        student_sum += tl.exp(student)
        teacher_sum += teacher_exp
        # Where the teacher gives nothing, the student may give anything: 0 * inf would be NaN.
        cross += tl.where(teacher_exp == 0, 0.0, teacher_exp * (teacher - student))
    student_sum = tl.sum(student_sum, axis=0)
    teacher_sum = tl.sum(teacher_sum, axis=0)
    loss = tl.sum(cross, axis=0) / teacher_sum + (tl.log(student_sum) - tl.log(teacher_sum))
    tl.store(loss_ptr + row, temperature * temperature * loss)
    tl.store(statistics_ptr + 4 * row, student_max)
    tl.store(statistics_ptr + 4 * row + 1, student_sum)
    tl.store(statistics_ptr + 4 * row + 2, teacher_max)
    tl.store(statistics_ptr + 4 * row + 3, teacher_sum)


@triton.jit
def distillation_loss_backward_kernel(
    grad_loss_ptr,
    student_ptr,
    teacher_ptr,
    statistics_ptr,
    grad_student_ptr,
    num_classes,
    temperature,
    share,
    PER_ROW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """grad_student = grad_loss * share * (softmax of student - softmax of teacher), one block of a row."""
    blocks = tl.cdiv(num_classes, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    classes = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    mask = classes < num_classes
    if PER_ROW:
        grad_loss = tl.load(grad_loss_ptr + row).to(tl.float32) * share
    else:
        grad_loss = tl.load(grad_loss_ptr).to(tl.float32) * share
    student_max = tl.load(statistics_ptr + 4 * row)
    student_sum = tl.load(statistics_ptr + 4 * row + 1)
    teacher_max = tl.load(statistics_ptr + 4 * row + 2)
    teacher_sum = tl.load(statistics_ptr + 4 * row + 3)
    offsets = row * num_classes + classes
    student = tl.load(student_ptr + offsets, mask=mask, other=0).to(tl.float32)
    teacher = tl.load(teacher_ptr + offsets, mask=mask, other=0).to(tl.float32)
    student = tl.exp((student - student_max) / temperature) / student_sum
    teacher = tl.exp((teacher - teacher_max) / temperature) / teacher_sum
    tl.store(grad_student_ptr + offsets, grad_loss * (student - teacher), mask=mask)


def distillation_loss_forward(student, teacher, temperature, reduction, loss, statistics):
    num_rows, num_classes = student.shape
    per_row = reduction == "none"
    block = block_size_for_row(num_classes, LARGEST_BLOCK)
    with on_device_of(student):
        losses = loss if per_row else torch.zeros(num_rows, dtype=torch.float32, device=student.device)
        if num_classes == 0:
            losses.zero_()
            statistics.zero_()
        elif num_rows > 0:
            distillation_loss_kernel[(num_rows,)](
                student,
                teacher,
                losses,
                statistics,
                num_classes,
                temperature,
                LOWEST=LOWEST,
                BLOCK=block,
                num_warps=num_warps_for(2 * block),
                **COMPILE_OPTIONS,
            )
        if not per_row:
            loss.copy_(losses.mean() if reduction == "mean" else losses.sum())


def distillation_loss_backward(grad_loss, student, teacher, statistics, temperature, reduction, grad_student):
    num_rows, num_classes = student.shape
    if student.numel() == 0:
        return
    block = block_size_for_row(num_classes, LARGEST_BLOCK)
    with on_device_of(student):
        distillation_loss_backward_kernel[(num_rows * triton.cdiv(num_classes, block),)](
            grad_loss,
            student,
            teacher,
            statistics,
            grad_student,
            num_classes,
            temperature,
            temperature / (num_rows if reduction == "mean" else 1),
            PER_ROW=reduction == "none",
            BLOCK=block,
            num_warps=num_warps_for(2 * block),
            **COMPILE_OPTIONS,
        )
