"""Triton kernels of the FMCE-Net head: Winograd F(2x2, 3x3) in half precision, one tile a window of the max pooling.

The references are `TorchBlock` with tiles of 2 and `head.score`. Maps are (H * W, N, C) and have
T = (H // 2) * (W // 2) tiles. All sums are in float32.
"""

import triton
import triton.language as tl


@triton.jit
def _input_transform(product: tl.constexpr, a, b, c, d):
    """Row `product` of the input transform of F(2, 3)."""
    if product == 0:
        return c - a
    elif product == 1:
        return b + c
    elif product == 2:
        return c - b
    else:
        return d - b


@triton.jit
def _input_transform_adjoint(position: tl.constexpr, a, b, c, d):
    """Column `position` of the input transform of F(2, 3)."""
    if position == 0:
        return -a
    elif position == 1:
        return b - c - d
    elif position == 2:
        return a + b + c
    else:
        return d


@triton.jit
def _output_transform(output: tl.constexpr, a, b, c, d):
    """Row `output` of the output transform of F(2, 3)."""
    if output == 0:
        return a + b + c
    else:
        return b - c + d


@triton.jit
def _four(pointer, stride, mask0, mask1, mask2, mask3, RELU: tl.constexpr):
    """Four vectors of channels, `stride` apart, as float32; zero where masked."""
    a = tl.load(pointer, mask=mask0, other=0.0).to(tl.float32)
    b = tl.load(pointer + stride, mask=mask1, other=0.0).to(tl.float32)
    c = tl.load(pointer + 2 * stride, mask=mask2, other=0.0).to(tl.float32)
    d = tl.load(pointer + 3 * stride, mask=mask3, other=0.0).to(tl.float32)
    if RELU:
        a, b = _relu(a), _relu(b)
        c, d = _relu(c), _relu(d)
    return a, b, c, d


@triton.jit
def _relu(value):
    return tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit(do_not_specialize=["samples", "position_stride", "sample_stride"])
def input_transform_kernel(
    maps,
    inputs,
    samples,
    position_stride,
    sample_stride,
    RELU_INPUT: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """maps (H * W, N, C) -> inputs (16, T * N, C), of the 4x4 patch around each tile. Strides are in elements."""
    ACROSS: tl.constexpr = WIDTH // 2
    TILES: tl.constexpr = HEIGHT // 2 * ACROSS
    sample, tile = (tl.program_id(0) // TILES).to(tl.int64), tl.program_id(0) % TILES
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < CHANNELS
    tile += channel * 0  # a vector, for the conditions below: the interpreter broadcasts no truth values
    top, left = tile // ACROSS * 2 - 1, tile % ACROSS * 2 - 1
    step, row = position_stride.to(tl.int64), position_stride.to(tl.int64) * WIDTH
    patch = maps + sample * sample_stride + top * row + left * step + channel
    first, last = inside & (left >= 0), inside & (left + 3 < WIDTH)
    above, below = top >= 0, top + 3 < HEIGHT
    a = _four(patch, step, first & above, inside & above, inside & above, last & above, RELU_INPUT)
    b = _four(patch + row, step, first, inside, inside, last, RELU_INPUT)
    c = _four(patch + 2 * row, step, first, inside, inside, last, RELU_INPUT)
    d = _four(patch + 3 * row, step, first & below, inside & below, inside & below, last & below, RELU_INPUT)
    out = inputs + (tile * samples.to(tl.int64) + sample) * CHANNELS + channel
    stride = samples.to(tl.int64) * TILES * CHANNELS
    for i in tl.static_range(4):
        e0, e1 = _input_transform(i, a[0], b[0], c[0], d[0]), _input_transform(i, a[1], b[1], c[1], d[1])
        e2, e3 = _input_transform(i, a[2], b[2], c[2], d[2]), _input_transform(i, a[3], b[3], c[3], d[3])
        for j in tl.static_range(4):
            value = _input_transform(j, e0, e1, e2, e3).to(inputs.dtype.element_ty)
            tl.store(out + (i * 4 + j) * stride, value, mask=inside)


@triton.jit(do_not_specialize=["tiles"])
def output_transform_kernel(products, bias, pooled, argmax, tiles, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """products (16, T * N, C), bias (C,) -> pooled (T * N, C) after ReLU, argmax (T * N, C).

    argmax: which of the window's 4 values is the first maximum; 4 where the ReLU gives zero.
    """
    tile = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < CHANNELS
    stride = tiles.to(tl.int64) * CHANNELS
    product = products + tile * CHANNELS + channel
    a = _four(product, stride, inside, inside, inside, inside, False)
    b = _four(product + 4 * stride, stride, inside, inside, inside, inside, False)
    c = _four(product + 8 * stride, stride, inside, inside, inside, inside, False)
    d = _four(product + 12 * stride, stride, inside, inside, inside, inside, False)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    where = tl.zeros((BLOCK,), tl.int32)
    for position in tl.static_range(4):
        value = _output_transform(
            position // 2,
            _output_transform(position % 2, a[0], a[1], a[2], a[3]),
            _output_transform(position % 2, b[0], b[1], b[2], b[3]),
            _output_transform(position % 2, c[0], c[1], c[2], c[3]),
            _output_transform(position % 2, d[0], d[1], d[2], d[3]),
        )
        where = tl.where(value > best, position, where)
        best = tl.maximum(best, value, propagate_nan=tl.PropagateNan.ALL)
    best += tl.load(bias + channel, mask=inside, other=0.0)
    out = tile * CHANNELS + channel
    activation = tl.maximum(best, 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(pooled + out, activation.to(pooled.dtype.element_ty), mask=inside)
    tl.store(argmax + out, tl.where(best > 0, where, 4).to(tl.uint8), mask=inside)


@triton.jit(do_not_specialize=["tiles"])
def backward_products_kernel(
    direction, argmax, filters, inputs, tiles,
    INNER: tl.constexpr, OUTER: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """direction, argmax (T * N, O), filters (16, O, C) -> inputs (16, T * N, C).

    The adjoint of max pooling and of the output transform, then the transposed filters; only the result is written.
    """
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    product = tl.program_id(2)
    i, j = product // 4, product % 4
    upper, lower = tl.where(i < 3, 1.0, 0.0), tl.where(i == 0, 0.0, tl.where(i == 2, -1.0, 1.0))
    left, right = tl.where(j < 3, 1.0, 0.0), tl.where(j == 0, 0.0, tl.where(j == 2, -1.0, 1.0))
    inner = tl.arange(0, BLOCK_K)
    row = tl.where(rows < tiles, rows, 0).to(tl.int64)[:, None] * INNER + inner[None, :]
    weights = filters + product.to(tl.int64) * INNER * OUTER + inner[:, None] * OUTER + columns[None, :]
    even: tl.constexpr = INNER % BLOCK_K == 0 and OUTER % BLOCK_N == 0
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, INNER, BLOCK_K):
        if even:
            g, position = tl.load(direction + row + k), tl.load(argmax + row + k)
            weight = tl.load(weights + k * OUTER)
        else:
            known = (inner + k < INNER)[None, :]
            g, position = (
                tl.load(direction + row + k, mask=known, other=0.0),
                tl.load(argmax + row + k, mask=known, other=4),
            )
            weight = tl.load(
                weights + k * OUTER, mask=(inner + k < INNER)[:, None] & (columns < OUTER)[None, :], other=0.0
            )
        vertical = tl.where(position < 2, upper, lower)
        horizontal = tl.where(position % 2 == 0, left, right)
        factor = tl.where(position < 4, vertical * horizontal, 0.0)  # -1, 0 or 1: exact in any type
        total = tl.dot(g * factor.to(g.dtype), weight, total)
    out = inputs + (product.to(tl.int64) * tiles + rows.to(tl.int64)[:, None]) * OUTER + columns[None, :]
    tl.store(out, total.to(inputs.dtype.element_ty), mask=(rows < tiles)[:, None] & (columns < OUTER)[None, :])


@triton.jit
def _both_rows(here, above, stride, in_here, in_above):
    """One column of products of a tile and of the tile above -> the two rows of positions that both reach."""
    a = _four(here, stride, in_here, in_here, in_here, in_here, False)
    b = _four(above, stride, in_above, in_above, in_above, in_above, False)
    upper = _input_transform_adjoint(0, a[0], a[1], a[2], a[3]) + _input_transform_adjoint(2, b[0], b[1], b[2], b[3])
    lower = _input_transform_adjoint(1, a[0], a[1], a[2], a[3]) + _input_transform_adjoint(3, b[0], b[1], b[2], b[3])
    return upper, lower


@triton.jit
def _store_position(maps, mask_maps, offset, mask_offset, value, inside, MASKED: tl.constexpr):
    if MASKED:
        value = tl.where(tl.load(mask_maps + mask_offset, mask=inside, other=0.0) > 0, value, 0.0)
    tl.store(maps + offset, value.to(maps.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["samples", "position_stride", "sample_stride"])
def input_transform_adjoint_kernel(
    inputs, mask_maps, maps, samples, position_stride, sample_stride,
    MASKED: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """inputs (16, T * N, C) -> maps (H * W, N, C), zero where `mask_maps` (H * W, N, C) is not positive.

    Strides are those of `mask_maps`, in elements. A program makes two rows of one map from left to right; they belong
    to one row of tiles and to the one above.
    """
    DOWN: tl.constexpr = HEIGHT // 2
    ACROSS: tl.constexpr = WIDTH // 2
    sample, down = (tl.program_id(0) // (DOWN + 1)).to(tl.int64), tl.program_id(0) % (DOWN + 1)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < CHANNELS
    down += channel * 0  # a vector, as above
    in_here, in_above = inside & (down < DOWN), inside & (down > 0)
    in_upper, in_lower = inside & (down > 0), inside & (2 * down < HEIGHT)
    next_one = samples.to(tl.int64) * CHANNELS  # position of maps, or tile of inputs
    stride = next_one * DOWN * ACROSS
    here = inputs + down * ACROSS * next_one + sample * CHANNELS + channel
    above = here - ACROSS * next_one
    upper_position = (2 * down - 1) * WIDTH - 1
    upper = upper_position * next_one + sample * CHANNELS + channel
    lower = upper + WIDTH * next_one
    step = position_stride.to(tl.int64)
    mask_upper = upper_position * step + sample * sample_stride + channel
    mask_lower = mask_upper + WIDTH * step
    left_upper = tl.zeros((BLOCK,), tl.float32)
    right_upper, left_lower, right_lower = left_upper, left_upper, left_upper
    for across in range(ACROSS + 1):
        column = across + channel * 0
        left, right, real = column > 0, 2 * column < WIDTH, column < ACROSS
        u0, l0 = _both_rows(here, above, 4 * stride, in_here & real, in_above & real)
        u1, l1 = _both_rows(here + stride, above + stride, 4 * stride, in_here & real, in_above & real)
        u2, l2 = _both_rows(here + 2 * stride, above + 2 * stride, 4 * stride, in_here & real, in_above & real)
        u3, l3 = _both_rows(here + 3 * stride, above + 3 * stride, 4 * stride, in_here & real, in_above & real)
        left_upper += _input_transform_adjoint(0, u0, u1, u2, u3)
        right_upper += _input_transform_adjoint(1, u0, u1, u2, u3)
        left_lower += _input_transform_adjoint(0, l0, l1, l2, l3)
        right_lower += _input_transform_adjoint(1, l0, l1, l2, l3)
        _store_position(maps, mask_maps, upper, mask_upper, left_upper, in_upper & left, MASKED)
        _store_position(maps, mask_maps, upper + next_one, mask_upper + step, right_upper, in_upper & right, MASKED)
        _store_position(maps, mask_maps, lower, mask_lower, left_lower, in_lower & left, MASKED)
        _store_position(maps, mask_maps, lower + next_one, mask_lower + step, right_lower, in_lower & right, MASKED)
        left_upper, right_upper = (
            _input_transform_adjoint(2, u0, u1, u2, u3),
            _input_transform_adjoint(3, u0, u1, u2, u3),
        )
        left_lower, right_lower = (
            _input_transform_adjoint(2, l0, l1, l2, l3),
            _input_transform_adjoint(3, l0, l1, l2, l3),
        )
        here, above = here + next_one, above + next_one
        upper, lower = upper + 2 * next_one, lower + 2 * next_one
        mask_upper, mask_lower = mask_upper + 2 * step, mask_lower + 2 * step


@triton.jit(do_not_specialize=["phases"])
def score_kernel(
    features, weight, bias, losses, slopes, directions, phases,
    LENGTH: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """features (N, F), weight (K, F), bias (K,) -> -log q_K (N,), slopes 1 - q_K (N,) and directions (N, F).

    The weights are read once: the sum of exp(logits) is kept relative to the largest logit so far.
    """
    sample = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < LENGTH
    feature = tl.load(features + sample * LENGTH + column, mask=inside, other=0.0).to(tl.float32)
    largest, total = float("-inf"), 0.0
    pull = tl.zeros((BLOCK,), tl.float32)
    for phase in range(phases - 1):
        row = tl.load(weight + phase * LENGTH + column, mask=inside, other=0.0)
        logit = tl.sum(row * feature) + tl.load(bias + phase)
        new = tl.maximum(largest, logit, propagate_nan=tl.PropagateNan.ALL)
        shrink, share = tl.exp(largest - new), tl.exp(logit - new)
        total, largest = total * shrink + share, new
        if GRADIENT:
            pull = pull * shrink + share * row
    others = largest + tl.log(total)
    row = tl.load(weight + (phases - 1) * LENGTH + column, mask=inside, other=0.0)
    margin = others - tl.sum(row * feature) - tl.load(bias + phases - 1)
    small = tl.exp(-tl.abs(margin))
    sum_of_both = 1.0 + small
    log1p = tl.where(sum_of_both == 1.0, small, tl.log(sum_of_both) * (small / (sum_of_both - 1.0)))
    tl.store(losses + sample, tl.maximum(margin, 0.0, propagate_nan=tl.PropagateNan.ALL) + log1p)
    if GRADIENT:
        tl.store(slopes + sample, tl.where(margin > 0, 1.0, small) / sum_of_both)
        direction = (pull / total - row).to(directions.dtype.element_ty)
        tl.store(directions + sample * LENGTH + column, direction, mask=inside)
