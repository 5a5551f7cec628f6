"""Triton kernels of the FMCE-Net head: F(2x2, 3x3), its output tile a window of the max pooling, in half precision.

`TorchStage` with tiles of 2 is the plain reference of a stage, `head.score` that of the scores. Maps are (H * W, N, C)
and have T = (H // 2) * (W // 2) tiles. All sums are in float32.
"""

import triton
import triton.language as tl


@triton.jit
def _enter(product: tl.constexpr, a, b, c, d):
    """Row `product` of the matrix into F(2, 3)."""
    if product == 0:
        return c - a
    elif product == 1:
        return b + c
    elif product == 2:
        return c - b
    else:
        return d - b


@triton.jit
def _enter_adjoint(position: tl.constexpr, a, b, c, d):
    """Column `position` of the matrix into F(2, 3)."""
    if position == 0:
        return -a
    elif position == 1:
        return b - c - d
    elif position == 2:
        return a + b + c
    else:
        return d


@triton.jit
def _leave(output: tl.constexpr, a, b, c, d):
    """Row `output` of the matrix out of F(2, 3)."""
    if output == 0:
        return a + b + c
    else:
        return b - c + d


@triton.jit
def _four(pointer, stride, mask0, mask1, mask2, mask3, RECTIFY: tl.constexpr):
    """Four vectors of channels, `stride` apart, as float32; zero where masked."""
    a = tl.load(pointer, mask=mask0, other=0.0).to(tl.float32)
    b = tl.load(pointer + stride, mask=mask1, other=0.0).to(tl.float32)
    c = tl.load(pointer + 2 * stride, mask=mask2, other=0.0).to(tl.float32)
    d = tl.load(pointer + 3 * stride, mask=mask3, other=0.0).to(tl.float32)
    if RECTIFY:
        a, b = _rectified(a), _rectified(b)
        c, d = _rectified(c), _rectified(d)
    return a, b, c, d


@triton.jit
def _rectified(value):
    return tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit(do_not_specialize=["samples", "of_position", "of_sample"])
def enter_kernel(
    maps,
    products,
    samples,
    of_position,
    of_sample,
    RECTIFY: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """maps (H * W, N, C), with strides in elements -> products (16, T * N, C): the patch of 4x4 around each tile."""
    ACROSS: tl.constexpr = WIDTH // 2
    TILES: tl.constexpr = HEIGHT // 2 * ACROSS
    sample, tile = (tl.program_id(0) // TILES).to(tl.int64), tl.program_id(0) % TILES
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < CHANNELS
    tile += channel * 0  # a vector, for the conditions below: the interpreter broadcasts no truth values
    top, left = tile // ACROSS * 2 - 1, tile % ACROSS * 2 - 1
    step, row = of_position.to(tl.int64), of_position.to(tl.int64) * WIDTH
    patch = maps + sample * of_sample + top * row + left * step + channel
    first, last = inside & (left >= 0), inside & (left + 3 < WIDTH)
    above, below = top >= 0, top + 3 < HEIGHT
    a = _four(patch, step, first & above, inside & above, inside & above, last & above, RECTIFY)
    b = _four(patch + row, step, first, inside, inside, last, RECTIFY)
    c = _four(patch + 2 * row, step, first, inside, inside, last, RECTIFY)
    d = _four(patch + 3 * row, step, first & below, inside & below, inside & below, last & below, RECTIFY)
    out = products + (tile * samples.to(tl.int64) + sample) * CHANNELS + channel
    stride = samples.to(tl.int64) * TILES * CHANNELS
    for i in tl.static_range(4):
        e0, e1 = _enter(i, a[0], b[0], c[0], d[0]), _enter(i, a[1], b[1], c[1], d[1])
        e2, e3 = _enter(i, a[2], b[2], c[2], d[2]), _enter(i, a[3], b[3], c[3], d[3])
        for j in tl.static_range(4):
            value = _enter(j, e0, e1, e2, e3).to(products.dtype.element_ty)
            tl.store(out + (i * 4 + j) * stride, value, mask=inside)


@triton.jit(do_not_specialize=["tiles"])
def leave_kernel(products, bias, pooled, route, tiles, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """products (16, T * N, C), bias (C,) -> pooled (T * N, C) after ReLU, route (T * N, C): which of the window's four
    was the first maximum, or 4 where the ReLU is closed.
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
        value = _leave(
            position // 2,
            _leave(position % 2, a[0], a[1], a[2], a[3]),
            _leave(position % 2, b[0], b[1], b[2], b[3]),
            _leave(position % 2, c[0], c[1], c[2], c[3]),
            _leave(position % 2, d[0], d[1], d[2], d[3]),
        )
        where = tl.where(value > best, position, where)
        best = tl.maximum(best, value, propagate_nan=tl.PropagateNan.ALL)
    best += tl.load(bias + channel, mask=inside, other=0.0)
    out = tile * CHANNELS + channel
    rectified = tl.maximum(best, 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(pooled + out, rectified.to(pooled.dtype.element_ty), mask=inside)
    tl.store(route + out, tl.where(best > 0, where, 4).to(tl.uint8), mask=inside)


@triton.jit(do_not_specialize=["tiles"])
def backward_products_kernel(
    direction, route, filters, products, tiles,
    INNER: tl.constexpr, OUTER: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """direction, route (T * N, O), filters (16, O, C) -> products (16, T * N, C).

    The direction goes to the position in the window that `route` names, from there through the adjoint of the matrix
    out of F(2, 3), and is multiplied by the transposed filters; nothing but the result is written.
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
            g, position = tl.load(direction + row + k), tl.load(route + row + k)
            weight = tl.load(weights + k * OUTER)
        else:
            known = (inner + k < INNER)[None, :]
            g, position = (
                tl.load(direction + row + k, mask=known, other=0.0),
                tl.load(route + row + k, mask=known, other=4),
            )
            weight = tl.load(
                weights + k * OUTER, mask=(inner + k < INNER)[:, None] & (columns < OUTER)[None, :], other=0.0
            )
        vertical = tl.where(position < 2, upper, lower)
        horizontal = tl.where(position % 2 == 0, left, right)
        factor = tl.where(position < 4, vertical * horizontal, 0.0)  # -1, 0 or 1: exact in any precision
        total = tl.dot(g * factor.to(g.dtype), weight, total)
    out = products + (product.to(tl.int64) * tiles + rows.to(tl.int64)[:, None]) * OUTER + columns[None, :]
    tl.store(out, total.to(products.dtype.element_ty), mask=(rows < tiles)[:, None] & (columns < OUTER)[None, :])


@triton.jit
def _both_rows(here, above, stride, in_here, in_above):
    """One column of products of a tile and of the tile above it -> their two common rows of positions."""
    a = _four(here, stride, in_here, in_here, in_here, in_here, False)
    b = _four(above, stride, in_above, in_above, in_above, in_above, False)
    upper = _enter_adjoint(0, a[0], a[1], a[2], a[3]) + _enter_adjoint(2, b[0], b[1], b[2], b[3])
    lower = _enter_adjoint(1, a[0], a[1], a[2], a[3]) + _enter_adjoint(3, b[0], b[1], b[2], b[3])
    return upper, lower


@triton.jit
def _store_position(maps, alive, offset, of_alive, value, inside, MASKED: tl.constexpr):
    if MASKED:
        value = tl.where(tl.load(alive + of_alive, mask=inside, other=0.0) > 0, value, 0.0)
    tl.store(maps + offset, value.to(maps.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["samples", "of_position", "of_sample"])
def enter_adjoint_kernel(
    products, alive, maps, samples, of_position, of_sample,
    MASKED: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """products (16, T * N, C) -> maps (H * W, N, C), zero where `alive`, of the same shape with strides in elements, is
    not positive.

    A program makes two rows of one map from left to right; they belong to one row of tiles and to the one above it.
    """
    DOWN: tl.constexpr = HEIGHT // 2
    ACROSS: tl.constexpr = WIDTH // 2
    sample, down = (tl.program_id(0) // (DOWN + 1)).to(tl.int64), tl.program_id(0) % (DOWN + 1)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < CHANNELS
    down += channel * 0  # a vector, as above
    in_here, in_above = inside & (down < DOWN), inside & (down > 0)
    in_upper, in_lower = inside & (down > 0), inside & (2 * down < HEIGHT)
    next_one = samples.to(tl.int64) * CHANNELS  # position of maps, or tile of products
    stride = next_one * DOWN * ACROSS
    here = products + down * ACROSS * next_one + sample * CHANNELS + channel
    above = here - ACROSS * next_one
    upper_position = (2 * down - 1) * WIDTH - 1
    upper = upper_position * next_one + sample * CHANNELS + channel
    lower = upper + WIDTH * next_one
    step = of_position.to(tl.int64)
    alive_upper = upper_position * step + sample * of_sample + channel
    alive_lower = alive_upper + WIDTH * step
    left_upper = tl.zeros((BLOCK,), tl.float32)
    right_upper, left_lower, right_lower = left_upper, left_upper, left_upper
    for across in range(ACROSS + 1):
        column = across + channel * 0
        left, right, real = column > 0, 2 * column < WIDTH, column < ACROSS
        u0, l0 = _both_rows(here, above, 4 * stride, in_here & real, in_above & real)
        u1, l1 = _both_rows(here + stride, above + stride, 4 * stride, in_here & real, in_above & real)
        u2, l2 = _both_rows(here + 2 * stride, above + 2 * stride, 4 * stride, in_here & real, in_above & real)
        u3, l3 = _both_rows(here + 3 * stride, above + 3 * stride, 4 * stride, in_here & real, in_above & real)
        left_upper += _enter_adjoint(0, u0, u1, u2, u3)
        right_upper += _enter_adjoint(1, u0, u1, u2, u3)
        left_lower += _enter_adjoint(0, l0, l1, l2, l3)
        right_lower += _enter_adjoint(1, l0, l1, l2, l3)
        _store_position(maps, alive, upper, alive_upper, left_upper, in_upper & left, MASKED)
        _store_position(maps, alive, upper + next_one, alive_upper + step, right_upper, in_upper & right, MASKED)
        _store_position(maps, alive, lower, alive_lower, left_lower, in_lower & left, MASKED)
        _store_position(maps, alive, lower + next_one, alive_lower + step, right_lower, in_lower & right, MASKED)
        left_upper, right_upper = _enter_adjoint(2, u0, u1, u2, u3), _enter_adjoint(3, u0, u1, u2, u3)
        left_lower, right_lower = _enter_adjoint(2, l0, l1, l2, l3), _enter_adjoint(3, l0, l1, l2, l3)
        here, above = here + next_one, above + next_one
        upper, lower = upper + 2 * next_one, lower + 2 * next_one
        alive_upper, alive_lower = alive_upper + 2 * step, alive_lower + 2 * step


@triton.jit(do_not_specialize=["phases"])
def score_kernel(
    features, weight, bias, losses, slopes, directions, phases,
    LENGTH: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """features (N, F), weight (K, F), bias (K,) -> -log q_K (N,); its slope 1 - q_K (N,) along directions (N, F).

    One look at the weights: as the phases pass, the sum of exp(logits) is kept relative to the largest so far.
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
    behind = others - tl.sum(row * feature) - tl.load(bias + phases - 1)
    small = tl.exp(-tl.abs(behind))
    sum_of_both = 1.0 + small
    log1p = tl.where(sum_of_both == 1.0, small, tl.log(sum_of_both) * (small / (sum_of_both - 1.0)))
    tl.store(losses + sample, tl.maximum(behind, 0.0, propagate_nan=tl.PropagateNan.ALL) + log1p)
    if GRADIENT:
        tl.store(slopes + sample, tl.where(behind > 0, 1.0, small) / sum_of_both)
        direction = (pull / total - row).to(directions.dtype.element_ty)
        tl.store(directions + sample * LENGTH + column, direction, mask=inside)
