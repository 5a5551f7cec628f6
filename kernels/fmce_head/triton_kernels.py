"""Triton kernels of the FMCE-Net head: Winograd's transforms, and all that lies between the matrix products.

A program holds BLOCK channels of one whole map in registers, in float32, and reads and writes every value once. A
transform is DOWN @ map @ ACROSS', both constants, row by row. Transformed maps are (N, tiles, R, C) with the R products
of a tile side by side; GRID is (tiles down, products of a tile down, tiles across, products of a tile across).

Maps beyond the range of float16 are computed divided by a power of two, `scales` (2, N): that of the first
convolution's products and that of the second's. The gradient does not depend on it.
"""

import triton
import triton.language as tl


@triton.constexpr_function
def _place(a, b, grid):
    """Which of a map's products the one of row a of DOWN and row b of ACROSS is."""
    _, products_down, tiles_across, products_across = grid
    tile = a // products_down * tiles_across + b // products_across
    return (tile * products_down + a % products_down) * products_across + b % products_across


@triton.constexpr_function
def _count(grid):
    """Products of a map."""
    return grid[0] * grid[1] * grid[2] * grid[3]


@triton.jit
def _program(CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """Sample and channels of this program."""
    blocks: tl.constexpr = (CHANNELS + BLOCK - 1) // BLOCK
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    channel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    return sample, channel


@triton.jit
def _mask(channel, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """Which of the channels exist; None where all do."""
    if CHANNELS % BLOCK == 0:
        inside = None
    else:
        inside = channel < CHANNELS
    return inside


@triton.jit
def _transformed_row(DOWN: tl.constexpr, a: tl.constexpr, ACROSS: tl.constexpr, values, WIDTH: tl.constexpr):
    """Row a of DOWN @ values @ ACROSS'; `values` is a map of this width, row by row."""
    height: tl.constexpr = len(values) // WIDTH
    between = ()
    for x in tl.static_range(WIDTH):
        total = None
        for y in tl.static_range(height):
            if DOWN[a * height + y] != 0:
                if total is None:
                    total = DOWN[a * height + y] * values[y * WIDTH + x]
                else:
                    total += DOWN[a * height + y] * values[y * WIDTH + x]
        if total is None:
            total = tl.zeros_like(values[0])
        between = between + (total,)
    row = ()
    for b in tl.static_range(len(ACROSS) // WIDTH):
        total = None
        for x in tl.static_range(WIDTH):
            if ACROSS[b * WIDTH + x] != 0:
                if total is None:
                    total = ACROSS[b * WIDTH + x] * between[x]
                else:
                    total += ACROSS[b * WIDTH + x] * between[x]
        if total is None:
            total = tl.zeros_like(values[0])
        row = row + (total,)
    return row


@triton.jit
def _load_products(products, inside, GRID: tl.constexpr, CHANNELS: tl.constexpr):
    """The products of a map, row by row."""
    values = ()
    for a in tl.static_range(GRID[0] * GRID[1]):
        for b in tl.static_range(GRID[2] * GRID[3]):
            value = tl.load(products + _place(a, b, GRID) * CHANNELS, mask=inside)
            values = values + (value.to(tl.float32),)
    return values


@triton.jit
def _store_transform(
    out, DOWN: tl.constexpr, ACROSS: tl.constexpr, values, WIDTH: tl.constexpr, inside, GRID: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    """The transform of a map that is read by matrix products."""
    for a in tl.static_range(GRID[0] * GRID[1]):
        row = _transformed_row(DOWN, a, ACROSS, values, WIDTH)
        for b in tl.static_range(GRID[2] * GRID[3]):
            tl.store(out + _place(a, b, GRID) * CHANNELS, row[b].to(tl.float16), mask=inside)


@triton.jit
def _first_maximum(upper, lower, x: tl.constexpr):
    """The largest of the pooling window at column 2 * x of two rows, and which of the four it is."""
    best = upper[2 * x]
    argmax = tl.where(upper[2 * x + 1] > best, 1, 0)
    best = tl.maximum(best, upper[2 * x + 1], propagate_nan=tl.PropagateNan.ALL)
    argmax = tl.where(lower[2 * x] > best, 2, argmax)
    best = tl.maximum(best, lower[2 * x], propagate_nan=tl.PropagateNan.ALL)
    argmax = tl.where(lower[2 * x + 1] > best, 3, argmax)
    best = tl.maximum(best, lower[2 * x + 1], propagate_nan=tl.PropagateNan.ALL)
    return best, argmax


@triton.jit
def _pool(
    products, scale, bias, inside, DOWN: tl.constexpr, ACROSS: tl.constexpr, GRID: tl.constexpr, CHANNELS: tl.constexpr
):
    """Products of a convolution -> the map after pooling, bias and ReLU, and its argmax, both row by row.

    argmax: which of a window's 4 values is the first maximum; 4 where the ReLU gives zero.
    """
    values = _load_products(products, inside, GRID, CHANNELS)
    bias = tl.load(bias, mask=inside)
    pooled, argmax = (), ()
    for y in tl.static_range(len(DOWN) // (2 * GRID[0] * GRID[1])):
        upper = _transformed_row(DOWN, 2 * y, ACROSS, values, GRID[2] * GRID[3])
        lower = _transformed_row(DOWN, 2 * y + 1, ACROSS, values, GRID[2] * GRID[3])
        for x in tl.static_range(len(ACROSS) // (2 * GRID[2] * GRID[3])):
            best, where = _first_maximum(upper, lower, x)
            best = best * scale + bias
            pooled = pooled + (tl.maximum(best, 0.0, propagate_nan=tl.PropagateNan.ALL),)
            argmax = argmax + (tl.where(best > 0, where, 4),)
    return pooled, argmax


@triton.jit
def _unpool(direction, argmax, WINDOWS_DOWN: tl.constexpr, WINDOWS_ACROSS: tl.constexpr):
    """Gradient at the pooled map and its argmax -> gradient at the convolution's, both row by row."""
    values = ()
    for y in tl.static_range(WINDOWS_DOWN):
        for row in tl.static_range(2):
            for x in tl.static_range(2 * WINDOWS_ACROSS):
                here = argmax[y * WINDOWS_ACROSS + x // 2] == 2 * row + x % 2
                values = values + (tl.where(here, direction[y * WINDOWS_ACROSS + x // 2], 0.0),)
    return values


@triton.jit
def _power_of_two(size, limit):
    """A power of two, at most 1, that brings `size` below `limit`."""
    exponent = (tl.maximum(size / limit, 0.5).to(tl.int32, bitcast=True) >> 23) + 1  # of the next power, biased by 127
    return ((254 - tl.minimum(exponent, 253)) << 23).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["samples", "again"])
def input_transform_kernel(
    maps, maxima, scales, inputs, positive, samples, again, limit, growth, offset, second_limit, DOWN: tl.constexpr,
    ACROSS: tl.constexpr, GRID: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, RELU: tl.constexpr,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """maps (N, H * W, C) -> inputs (N, tiles, R, C) of the first convolution's products; launched twice.

    First it notes in maxima (N, blocks) the largest absolute value of its channels. Again, it finds scales (2, N), and
    transforms anew the maps that are to be divided by one: the products of values up to `limit` stay within float16,
    those of the second convolution up to `second_limit`, and the first makes at most growth * x + offset of x.
    RELU: apply ReLU to the maps first, and note where it lets through in the bits of positive (N, words, C).
    BLOCKS: blocks or more.
    """
    sample, channel = _program(CHANNELS, BLOCK)
    inside = _mask(channel, CHANNELS, BLOCK)
    blocks: tl.constexpr = (CHANNELS + BLOCK - 1) // BLOCK
    scale = 1.0
    if again:
        block = tl.arange(0, BLOCKS)
        largest = tl.max(tl.load(maxima + sample * blocks + block, mask=block < blocks, other=0.0), 0)
        scale = _power_of_two(largest, limit)
        tl.store(scales + sample, scale)
        tl.store(scales + samples + sample, _power_of_two(largest * growth + offset, second_limit))
    maps += sample * (HEIGHT * WIDTH * CHANNELS) + channel
    words: tl.constexpr = (HEIGHT * WIDTH + 31) // 32
    positive += sample * (words * CHANNELS) + channel
    inputs += sample * (_count(GRID) * CHANNELS) + channel
    if (again == 0) | (scale < 1.0):
        largest_of_channels = tl.zeros((BLOCK,), tl.float32)
        values = ()
        for word in tl.static_range(words):
            bits = tl.zeros((BLOCK,), tl.int32)
            for bit in tl.static_range(min(32, HEIGHT * WIDTH - 32 * word)):
                value = tl.load(maps + (32 * word + bit) * CHANNELS, mask=inside).to(tl.float32) * scale
                if RELU:
                    bits |= tl.where(value > 0, 1 << bit, 0)
                    value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)
                largest_of_channels = tl.maximum(largest_of_channels, tl.abs(value))
                values = values + (value,)
            if RELU:
                tl.store(positive + word * CHANNELS, bits, mask=inside)
        _store_transform(inputs, DOWN, ACROSS, values, WIDTH, inside, GRID, CHANNELS)
        if again == 0:
            if inside is not None:
                largest_of_channels = tl.where(inside, largest_of_channels, 0.0)
            tl.store(maxima + tl.program_id(0), tl.max(largest_of_channels, 0))


@triton.jit(do_not_specialize=["samples"])
def pool_kernel(
    products, scales, bias, argmax, inputs, samples, DOWN: tl.constexpr, ACROSS: tl.constexpr, GRID: tl.constexpr,
    NEXT_DOWN: tl.constexpr, NEXT_ACROSS: tl.constexpr, NEXT_GRID: tl.constexpr, CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """products (N, tiles, R, C) of the first convolution -> argmax (N, windows, C), and inputs of the second's."""
    sample, channel = _program(CHANNELS, BLOCK)
    inside = _mask(channel, CHANNELS, BLOCK)
    products += sample * (_count(GRID) * CHANNELS) + channel
    height: tl.constexpr = len(DOWN) // (2 * GRID[0] * GRID[1])
    width: tl.constexpr = len(ACROSS) // (2 * GRID[2] * GRID[3])
    argmax += sample * (height * width * CHANNELS) + channel
    inputs += sample * (_count(NEXT_GRID) * CHANNELS) + channel
    scale, next_scale = 1.0 / tl.load(scales + sample), tl.load(scales + samples + sample)
    pooled, where = _pool(products, scale, bias + channel, inside, DOWN, ACROSS, GRID, CHANNELS)
    values = ()
    for window in tl.static_range(len(pooled)):
        tl.store(argmax + window * CHANNELS, where[window].to(tl.uint8), mask=inside)
        values = values + (pooled[window] * next_scale,)
    _store_transform(inputs, NEXT_DOWN, NEXT_ACROSS, values, width, inside, NEXT_GRID, CHANNELS)


@triton.jit(do_not_specialize=["samples"])
def score_kernel(
    products, scales, bias, weight, phase_bias, losses, slopes, directions, samples, DOWN: tl.constexpr,
    ACROSS: tl.constexpr, GRID: tl.constexpr, ADJOINT_DOWN: tl.constexpr, ADJOINT_ACROSS: tl.constexpr,
    PHASES: tl.constexpr, PHASE_BLOCK: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """products (N, tiles, R, C) of the second convolution, weight (K, windows, C), phase_bias (K,) -> -log q_K (N,),
    and its gradient at the products, slopes (N,) times directions (N, tiles, R, C).

    The largest of a map's directions is about 1, however small the slope is. BLOCK: C or more.
    """
    height: tl.constexpr = len(DOWN) // (2 * GRID[0] * GRID[1])
    width: tl.constexpr = len(ACROSS) // (2 * GRID[2] * GRID[3])
    windows: tl.constexpr = height * width
    sample, channel = _program(CHANNELS, BLOCK)
    inside = _mask(channel, CHANNELS, BLOCK)
    products += sample * (_count(GRID) * CHANNELS) + channel
    directions += sample * (_count(GRID) * CHANNELS) + channel
    scale = 1.0 / tl.load(scales + samples + sample)
    features, argmax = _pool(products, scale, bias + channel, inside, DOWN, ACROSS, GRID, CHANNELS)

    phase = tl.arange(0, PHASE_BLOCK)
    exists = (phase < PHASES)[:, None] & (channel < CHANNELS)[None, :]
    weight += phase[:, None] * (windows * CHANNELS) + channel[None, :]
    logits = tl.load(phase_bias + phase, mask=phase < PHASES, other=0.0)
    weights = ()
    for window in tl.static_range(windows):
        weights = weights + (tl.load(weight + window * CHANNELS, mask=exists, other=0.0),)
        feature = tl.where(channel < CHANNELS, features[window], 0.0)
        logits += tl.sum(weights[window] * feature[None, :], 1)
    others = tl.where(phase < PHASES - 1, logits, float("-inf"))
    largest = tl.max(others, 0)
    shares = tl.exp(others - largest)
    total = tl.sum(shares, 0)
    margin = largest + tl.log(total) - tl.sum(tl.where(phase == PHASES - 1, logits, 0.0), 0)
    small = tl.exp(-tl.abs(margin))
    one = 1.0 + small
    log1p = tl.where(one == 1.0, small, tl.log(one) * (small / tl.where(one == 1.0, 1.0, one - 1.0)))
    tl.store(losses + sample, tl.maximum(margin, 0.0, propagate_nan=tl.PropagateNan.ALL) + log1p)

    pull = shares / total - tl.where(phase == PHASES - 1, 1.0, 0.0)
    gradient = ()
    size = 1e-30
    for window in tl.static_range(windows):
        gradient = gradient + (tl.sum(weights[window] * pull[:, None], 0),)
        size = tl.maximum(size, tl.max(tl.abs(gradient[window]), 0))
    tl.store(slopes + sample, tl.where(margin > 0, 1.0, small) / one * size)
    values = ()
    for window in tl.static_range(windows):
        values = values + (gradient[window] / size,)
    values = _unpool(values, argmax, height, width)
    _store_transform(directions, ADJOINT_DOWN, ADJOINT_ACROSS, values, 2 * width, inside, GRID, CHANNELS)


@triton.jit
def unpool_kernel(
    products, argmax, directions, DOWN: tl.constexpr, ACROSS: tl.constexpr, GRID: tl.constexpr,
    NEXT_DOWN: tl.constexpr, NEXT_ACROSS: tl.constexpr, NEXT_GRID: tl.constexpr, CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient at the second convolution's inputs (N, tiles, R, C), argmax -> directions at the first's products."""
    sample, channel = _program(CHANNELS, BLOCK)
    inside = _mask(channel, CHANNELS, BLOCK)
    products += sample * (_count(GRID) * CHANNELS) + channel
    height: tl.constexpr = len(DOWN) // (GRID[0] * GRID[1])
    width: tl.constexpr = len(ACROSS) // (GRID[2] * GRID[3])
    argmax += sample * (height * width * CHANNELS) + channel
    directions += sample * (_count(NEXT_GRID) * CHANNELS) + channel
    where = ()
    for window in tl.static_range(height * width):
        where = where + (tl.load(argmax + window * CHANNELS, mask=inside),)
    values = _load_products(products, inside, GRID, CHANNELS)
    direction = ()
    for y in tl.static_range(height):
        direction = direction + _transformed_row(DOWN, y, ACROSS, values, GRID[2] * GRID[3])
    values = _unpool(direction, where, height, width)
    _store_transform(directions, NEXT_DOWN, NEXT_ACROSS, values, 2 * width, inside, NEXT_GRID, CHANNELS)


@triton.jit(do_not_specialize_on_alignment=["loss_gradient"])
def input_gradient_kernel(
    products, positive, slopes, loss_gradient, gradient, factor, DOWN: tl.constexpr, ACROSS: tl.constexpr,
    GRID: tl.constexpr, RELU: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient at the first convolution's inputs (N, tiles, R, C) -> gradient (N, H * W, C) at the maps.

    It is multiplied by slopes (N,), loss_gradient () and factor. RELU: where `positive` says that it lets through.
    """
    sample, channel = _program(CHANNELS, BLOCK)
    inside = _mask(channel, CHANNELS, BLOCK)
    height: tl.constexpr = len(DOWN) // (GRID[0] * GRID[1])
    width: tl.constexpr = len(ACROSS) // (GRID[2] * GRID[3])
    products += sample * (_count(GRID) * CHANNELS) + channel
    gradient += sample * (height * width * CHANNELS) + channel
    scale = tl.load(slopes + sample) * tl.load(loss_gradient) * factor
    bits = ()
    if RELU:
        words: tl.constexpr = (height * width + 31) // 32
        positive += sample * (words * CHANNELS) + channel
        for word in tl.static_range(words):
            bits = bits + (tl.load(positive + word * CHANNELS, mask=inside),)
    values = _load_products(products, inside, GRID, CHANNELS)
    for y in tl.static_range(height):
        row = _transformed_row(DOWN, y, ACROSS, values, GRID[2] * GRID[3])
        for x in tl.static_range(width):
            value = row[x] * scale
            if RELU:
                word = bits[(y * width + x) // 32]
                value = tl.where((word >> ((y * width + x) % 32)) & 1 != 0, value, 0.0)
            tl.store(gradient + (y * width + x) * CHANNELS, value.to(gradient.dtype.element_ty), mask=inside)
