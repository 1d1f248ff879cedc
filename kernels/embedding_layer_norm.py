"""BERT's three embeddings, added, normalized and dropped out, on GPUs: whole rows stay in registers.

The backward looks the rows up again, and goes on with the kernels of norm_backward.py and embedding_rows.py.
"""

import triton
import triton.language as tl

from .common import COMPILE_OPTIONS, on_device_of
from .embedding_rows import launch_table_gradient
from .norm import center, row_tile_for, scale_and_shift, stride_of, tile_of_rows
from .norm_addition import dropout_factor, dropout_scalars
from .norm_backward import launch_backward


@triton.jit
def look_up(ids_ptr, table_ptr, rows, cols, mask, num_rows, num_table_rows, ids_stride, row_stride, col_stride):
    """fp32 rows of a table; NaN for an index that is none of them, 0 outside of mask"""
    ids = tl.load(ids_ptr + rows * ids_stride, mask=rows < num_rows, other=0).to(tl.int64)
    is_row = (ids >= 0) & (ids < num_table_rows)
    offsets = ids * row_stride + cols.to(tl.int64) * col_stride
    values = tl.load(table_ptr + offsets, mask=mask & is_row, other=float("nan")).to(tl.float32)
    return tl.where(mask, values, 0.0)


@triton.jit(do_not_specialize=["keep_threshold"])
def embedding_layer_norm_kernel(
    word_ids_ptr,
    word_ptr,
    position_ids_ptr,
    position_ptr,
    token_type_ids_ptr,
    token_type_ptr,
    weight_ptr,
    bias_ptr,
    rng_state_ptr,
    grad_output_ptr,
    output_ptr,
    mean_ptr,
    rstd_ptr,
    num_rows,
    num_cols,
    num_words,
    num_positions,
    num_token_types,
    word_ids_stride,
    word_row_stride,
    word_col_stride,
    position_ids_stride,
    position_row_stride,
    position_col_stride,
    token_type_ids_stride,
    token_type_row_stride,
    token_type_col_stride,
    weight_stride,
    bias_stride,
    grad_row_stride,
    grad_col_stride,
    keep_threshold,
    keep_scale,
    eps,
    sum_ptr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """The forward; or, where sum_ptr is given, the sums again, and in `output` grad_output behind the dropout."""
    rows, cols, mask = tile_of_rows(tl.program_id(0) * BLOCK_ROWS, num_rows, num_cols, BLOCK_ROWS, BLOCK_COLS)
    dtype: tl.constexpr = word_ptr.dtype.element_ty
    x = look_up(
        word_ids_ptr, word_ptr, rows, cols, mask, num_rows, num_words, word_ids_stride, word_row_stride, word_col_stride
    )
    x += look_up(
        position_ids_ptr,
        position_ptr,
        rows,
        cols,
        mask,
        num_rows,
        num_positions,
        position_ids_stride,
        position_row_stride,
        position_col_stride,
    )
    x += look_up(
        token_type_ids_ptr,
        token_type_ptr,
        rows,
        cols,
        mask,
        num_rows,
        num_token_types,
        token_type_ids_stride,
        token_type_row_stride,
        token_type_col_stride,
    )
    x = x.to(dtype)
    if sum_ptr is not None:
        tl.store(sum_ptr + rows * num_cols + cols, x, mask=mask)
        if rng_state_ptr is not None:
            offsets = rows * grad_row_stride + cols.to(tl.int64) * grad_col_stride
            y = tl.load(grad_output_ptr + offsets, mask=mask, other=0).to(tl.float32)
    else:
        mean, x = center(x.to(tl.float32), mask, num_cols)
        tl.store(mean_ptr + rows, mean, mask=rows < num_rows)
        rstd = tl.rsqrt(tl.sum(x * x, axis=1, keep_dims=True) / num_cols + eps)
        tl.store(rstd_ptr + rows, rstd, mask=rows < num_rows)
        y = scale_and_shift(x * rstd, weight_ptr, bias_ptr, cols, num_cols, weight_stride, bias_stride)
    if rng_state_ptr is not None:
        y *= dropout_factor(rng_state_ptr, rows, 0, keep_threshold, keep_scale, BLOCK_COLS)
    if output_ptr is not None:
        tl.store(output_ptr + rows * num_cols + cols, y.to(output_ptr.dtype.element_ty), mask=mask)


def launch(lookups, weight, bias, rng_state, dropout_p, grad_output, output, mean, rstd, eps, sum):
    """lookups: (indices, table) three times."""
    num_rows, num_cols = lookups[0][0].numel(), lookups[0][1].shape[1]
    tile = row_tile_for(num_rows, num_cols)
    embedding_layer_norm_kernel[(triton.cdiv(num_rows, tile.block_rows),)](
        *(tensor for pair in lookups for tensor in pair),
        weight,
        bias,
        rng_state,
        grad_output,
        output,
        mean,
        rstd,
        num_rows,
        num_cols,
        *(len(table) for _, table in lookups),
        *(stride for pair in lookups for tensor in pair for stride in tensor.stride()),
        stride_of(weight),
        stride_of(bias),
        *((0, 0) if grad_output is None else grad_output.stride()),
        *dropout_scalars(dropout_p),
        eps,
        sum,
        BLOCK_ROWS=tile.block_rows,
        BLOCK_COLS=tile.block_cols,
        num_warps=tile.num_warps,
        **COMPILE_OPTIONS,
    )


def embedding_layer_norm_forward(
    input,
    word_weight,
    position_ids,
    position_weight,
    token_type_ids,
    token_type_weight,
    weight,
    bias,
    rng_state,
    padding_idx,
    eps,
    dropout_p,
    output,
    mean,
    rstd,
):
    if output.numel() == 0:
        for statistic in (mean, rstd):
            statistic.fill_(float("nan"))
        return
    lookups = ((input, word_weight), (position_ids, position_weight), (token_type_ids, token_type_weight))
    with on_device_of(word_weight):
        launch(lookups, weight, bias, rng_state, dropout_p, None, output, mean, rstd, eps, None)


def embedding_layer_norm_backward(
    grad_output,
    input,
    word_weight,
    position_ids,
    position_weight,
    token_type_ids,
    token_type_weight,
    weight,
    bias,
    mean,
    rstd,
    rng_state,
    padding_idx,
    dropout_p,
    needs_table_grads,
    needs_weight_grad,
    needs_bias_grad,
    grad_word_weight,
    grad_position_weight,
    grad_token_type_weight,
    grad_weight,
    grad_bias,
):
    lookups = ((input, word_weight), (position_ids, position_weight), (token_type_ids, token_type_weight))
    sum = grad_output.new_empty(grad_output.shape)
    masked, gradient = grad_output, None
    with on_device_of(word_weight):
        if sum.numel():
            target = None if rng_state is None else grad_output.new_empty(grad_output.shape)
            launch(lookups, None, None, rng_state, dropout_p, grad_output, target, None, None, 0.0, sum)
            masked = grad_output if target is None else target
        if needs_table_grads:
            gradient = grad_output.new_empty(grad_output.shape)
        launch_backward(
            masked,
            sum,
            weight,
            mean,
            rstd,
            gradient,
            grad_weight if needs_weight_grad else None,
            grad_bias if needs_bias_grad else None,
        )
        if needs_table_grads:
            launch_table_gradient(gradient, input, padding_idx, False, grad_word_weight)
            launch_table_gradient(gradient, position_ids, -1, False, grad_position_weight)
            launch_table_gradient(gradient, token_type_ids, -1, False, grad_token_type_weight)
