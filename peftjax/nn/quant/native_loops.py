"""The loops of fused dequantise-matrix-vector products: y [M, N] = x [M, K] · V [K, N], with V as it is stored.

    for a panel of K:            its x is copied together (affine4's scaled, see below), with the sum of x over every step
      for a step of K (<= 32):   within one block, so that constants are read once a step
        for a tile of N:         a few vector registers wide
          s  = Σ_k x_k q_k       q unpacked in registers, one fused multiply-add a weight and row
          y += scale · s         and + minimum · Σ_k x_k

| kind     | leaves after x                                   | q_k                                                                       |
|----------|--------------------------------------------------|---------------------------------------------------------------------------|
| affine4  | words u32, scale f16[, minimum f16]              | word & (15 << 4j): 16^j times too large, so x_k is divided by it, exactly |
| nf4      | words u32, absmax f32 / codes u8, scale, offset  | TABLE[word >> 4j & 15]: a permutation of registers that hold the table    |
| int8     | q i8, scale f16 / f32                            | as it is                                                                  |
| bfloat16 | V                                                | its bits in the upper half of a float32                                   |
| float16  | V                                                | as it is                                                                  |

All sums are float32, in an order that depends on K alone and not on threads. A call does the columns from `low` to `high`; where those
do not fill the last tile, the tile begins earlier, and some of its neighbour's columns are written twice with the same bits.
"""

import dataclasses

from llvmlite import ir

from peftjax.nn.quant.native_llvm import F16, F32, I8, I16, I32, Code, Machine, constant, number
from peftjax.nn.quant.nf4 import GROUP, TABLE
from peftjax.nn.quant.words import PER_WORD

PANEL = 1024  # of K; x of that many stays in the first-level cache
STRIDE = PANEL + 16  # between rows of x; a power of two would put all of them into the same lines of that cache
CHUNK = 512  # columns of a call at most
TILE = 64  # columns of a tile at most
AHEAD = 1  # steps that memory is asked for before it is needed
LINE = 64  # bytes of a line of the cache
WIDTH = CHUNK + TILE  # between rows of sums
SCRATCH = 8 * (2 * STRIDE + WIDTH)  # float32 numbers that a call writes on the side
LEAVES = 4  # at most
PACKED = ("affine4", "nf4")  # kinds of eight weights a word


@dataclasses.dataclass(frozen=True)
class Loop:
    """All of a loop that is fixed when it is compiled; K and N are not.

    kind: as in the table. rows: M. step: as above; it divides K and the block. block: weights that share constants; None is all of K.
    scale: dtype of the scales in memory. minimum: affine4 has one. double: nf4's constants are quantised. tile: columns done
    together, a line of the cache or two.
    """

    kind: str
    rows: int
    step: int
    block: int | None = None
    scale: str = "float16"
    minimum: bool = False
    double: bool = False
    tile: int = TILE // 2

    @property
    def name(self) -> str:
        """A name of its own."""
        values = dataclasses.asdict(self)
        return "peftjax_" + "_".join(str(value) if name == "kind" else f"{name}{value}" for name, value in values.items())


@dataclasses.dataclass(frozen=True)
class _Tile:
    """Where the code being written is: at row `k` of V, in the columns from `columns` on, one register each."""

    code: Code
    loop: Loop
    machine: Machine
    leaves: list
    n: ir.Value
    k: ir.Value
    columns: list

    def weights(self, row: int, kind):
        """leaf0[row, columns], and a call for the same columns some steps further down."""
        loop, code = self.loop, self.code
        every = PER_WORD if loop.kind in PACKED else 1
        start = code.mul(code.add(code.sdiv(self.k, number(every)), number(row)), self.n)
        later = code.add(start, code.mul(number(AHEAD * loop.step // every), self.n))
        for column in self.columns[:: max(1, LINE * 8 // (self.machine.lanes * kind.width))]:
            address = code.at(self.leaves[0], code.add(later, column), kind)
            code.intrinsic("llvm.prefetch.p0", ir.VoidType(), address, *(ir.Constant(I32, value) for value in (0, 3, 1)))
        return [code.read(self.leaves[0], code.add(start, column), kind, self.machine.lanes) for column in self.columns]

    def read(self, leaf: int, row, kind):
        """leaf[row, columns]"""
        start = self.code.mul(row, self.n)
        return [self.code.read(self.leaves[leaf], self.code.add(start, c), kind, self.machine.lanes) for c in self.columns]

    def same(self, kind, value):
        """`value` in all lanes."""
        return constant(kind, [value] * self.machine.lanes)

    def floats(self, how: str, vectors):
        """Vectors converted to float32 by an LLVM instruction."""
        return [getattr(self.code, how)(vector, _floats_of(self.machine.lanes)) for vector in vectors]


def write_loop(loop: Loop, machine: Machine) -> str:
    """LLVM assembly of `void loop(out, x, leaf0, .. leaf3, scratch, k, n, low, high)`."""
    code = Code("loop", pointers=3 + LEAVES, numbers=4)
    scratch = code.function.args[2 + LEAVES]
    scratch.add_attribute("noalias")
    for rows, begin, end in _row_tiles(loop.rows):
        with code.loop(number(begin), number(end), rows) as first:
            _write_rows(code, loop, machine, rows, first)
    code.ret_void()
    return str(code.module)


def _write_rows(code, loop, machine, rows: int, first):
    """The loop over K and over the columns, for `rows` rows of x from `first` on."""
    out, x, *leaves, scratch, size, n, low, high = code.function.args
    sums, totals = (code.at(scratch, number(8 * STRIDE * i), F32) for i in (1, 2))
    lanes = machine.lanes
    width = max(1, min(loop.tile // lanes, machine.sums // rows))
    x = code.at(x, code.mul(first, size), F32)
    with code.loop(number(0), number(rows * WIDTH), lanes) as i:
        code.write(constant(F32, [0.0] * lanes), totals, i)
    with code.loop(number(0), size, PANEL) as start:
        stop = code.smaller(code.add(start, number(PANEL)), size)
        with code.loop(start, stop, loop.step) as k:
            _copy_x(code, loop, rows, code.at(x, k, F32), size, scratch, sums, code.sub(k, start))
        with code.loop(start, stop, loop.step) as k, code.loop(number(0), code.sub(high, low), width * lanes) as offset:
            tile = _Tile(code, loop, machine, leaves, n, k, _columns(code, low, n, offset, width, lanes))
            _add_step(tile, rows, scratch, sums, totals, code.sub(k, start), offset)
    with code.loop(number(0), code.sub(high, low), width * lanes) as offset:
        for vector, column in enumerate(_columns(code, low, n, offset, width, lanes)):
            for row in range(rows):
                total = code.read(totals, code.add(offset, number(row * WIDTH + vector * lanes)), F32, lanes)
                code.write(total, out, code.add(code.mul(code.add(first, number(row)), n), column))


def _row_tiles(rows: int) -> list[tuple[int, int, int]]:
    """(rows done together, from, to): 21 -> 8 from 0 to 16, 4 from 16 to 20, 1 from 20 to 21."""
    tiles, done = [], 0
    for size in (8, 4, 2, 1):
        count = (rows - done) // size
        tiles += [(size, done, done + count * size)] if count else []
        done += count * size
    return tiles


def _columns(code, low, n, offset, width, lanes):
    start = code.smaller(code.add(low, offset), code.sub(n, number(width * lanes)))
    return [code.add(start, number(lanes * vector)) for vector in range(width)]


def _copy_x(code, loop, rows, x, size, copy, sums, k):
    """A step of x [rows, ..] -> `copy`, and its sum -> `sums`, both at `k` of the panel."""
    shares = [16.0**-j for j in (0, 1, 2, 3, 4, 5, 6)] + [1.0]  # the last code of a word is shifted down, as its bits reach into the sign
    for row in range(rows):
        values = code.read(x, code.mul(number(row), size), F32, loop.step)
        if loop.kind == "affine4":
            total = code.intrinsic(f"llvm.vector.reduce.fadd.v{loop.step}f32", F32, ir.Constant(F32, -0.0), values, reorder=True)
            code.store(total, code.at(sums, code.add(number(row * STRIDE), k), F32), align=4)
            values = code.fmul(values, constant(F32, shares * (loop.step // 8)))
        code.write(values, copy, code.add(number(row * STRIDE), k))


def _add_step(tile: _Tile, rows, x, sums, totals, k, offset):
    """Adds one step of one tile to `totals`; `k` counts within the panel, `offset` within the call's columns."""
    code, lanes = tile.code, tile.machine.lanes
    added = [[tile.same(F32, 0.0) for _ in tile.columns] for _ in range(rows)]
    for i, weights in _weights(tile):
        for row in range(rows):
            share = code.everywhere(code.read(x, code.add(k, number(row * STRIDE + i)), F32), lanes)
            added[row] = [code.multiply_add(weight, share, total) for weight, total in zip(weights, added[row], strict=True)]
    scales, minima = _constants(tile)
    for row in range(rows):
        if minima:
            share = code.everywhere(code.read(sums, code.add(k, number(row * STRIDE)), F32), lanes)
        for vector, value in enumerate(added[row]):
            place = code.add(offset, number(row * WIDTH + vector * lanes))
            total = code.read(totals, place, F32, lanes)
            total = code.multiply_add(value, scales[vector], total) if scales else code.fadd(value, total)
            code.write(code.multiply_add(minima[vector], share, total) if minima else total, totals, place)


def _weights(tile: _Tile):
    """Yields (k of the step, q_k in float32, a vector each register) for every k of a step."""
    code, loop = tile.code, tile.loop
    if loop.kind in PACKED:
        read_codes = _affine4_codes if loop.kind == "affine4" else _nf4_codes
        for row in range(loop.step // PER_WORD):
            words = tile.weights(row, I32)
            for j in range(PER_WORD):
                yield PER_WORD * row + j, read_codes(tile, words, j)
        return
    for i in range(loop.step):
        match loop.kind:
            case "int8":
                yield i, tile.floats("sitofp", [code.sext(q, tile.same(I32, 0).type) for q in tile.weights(i, I8)])
            case "bfloat16":
                bits = [code.zext(half, tile.same(I32, 0).type) for half in tile.weights(i, I16)]
                yield i, tile.floats("bitcast", [code.shl(half, tile.same(I32, 16)) for half in bits])
            case "float16":
                halves = [code.bitcast(half, tile.same(F16, 0.0).type) for half in tile.weights(i, I16)]
                yield i, tile.floats("fpext", halves)


def _affine4_codes(tile, words, j):
    if j == 7:
        return tile.floats("uitofp", [tile.code.lshr(word, tile.same(I32, 28)) for word in words])
    return tile.floats("sitofp", [tile.code.and_(word, tile.same(I32, 15 << 4 * j)) for word in words])


def _nf4_codes(tile, words, j):
    codes = [tile.code.lshr(word, tile.same(I32, 4 * j)) if j else word for word in words]
    return [_look_up(tile, code) for code in codes]


def _look_up(tile, codes):
    """TABLE[codes & 15]"""
    code = tile.code
    if tile.machine.lanes == 16:  # takes the lowest four bits itself
        return code.intrinsic("llvm.x86.avx512.permvar.sf.512", _floats_of(16), constant(F32, TABLE), codes)
    if tile.machine.lanes == 8:  # takes the lowest three; the fourth says which half
        low, high = (code.intrinsic("llvm.x86.avx2.permps", _floats_of(8), constant(F32, half), codes) for half in (TABLE[:8], TABLE[8:]))
        return code.select(code.icmp_signed("<", code.shl(codes, tile.same(I32, 28)), tile.same(I32, 0)), high, low)
    table = [code.bitcast(constant(F32, TABLE[i : i + 4]), ir.VectorType(I8, 16)) for i in range(0, 16, 4)]
    places = code.add(code.mul(code.and_(codes, tile.same(I32, 15)), tile.same(I32, 0x04040404)), tile.same(I32, 0x03020100))
    found = code.intrinsic("llvm.aarch64.neon.tbl4.v16i8", table[0].type, *table, code.bitcast(places, table[0].type))
    return code.bitcast(found, _floats_of(4))


def _floats_of(lanes: int):
    return ir.VectorType(F32, lanes)


def _constants(tile: _Tile):
    """The scales and minima of a step, a vector each register; None where there are none."""
    code, loop = tile.code, tile.loop
    row = code.sdiv(tile.k, number(loop.block)) if loop.block else number(0)
    match loop.kind:
        case "affine4":
            scales = tile.floats("fpext", tile.read(1, row, F16))
            if loop.minimum:
                return scales, tile.floats("fpext", tile.read(2, row, F16))
            return scales, [code.fmul(scale, tile.same(F32, -8.0)) for scale in scales]
        case "int8":
            return (tile.floats("fpext", tile.read(1, row, F16)) if loop.scale == "float16" else tile.read(1, row, F32)), None
        case "nf4":
            return (_double(tile, row) if loop.double else tile.read(1, row, F32)), None
    return None, None


def _double(tile, row):
    """offset + scale · codes; columns begin at multiples of the lanes, so that a register has one scale."""
    code, lanes = tile.code, tile.machine.lanes
    groups = code.sdiv(code.add(tile.n, number(GROUP - 1)), number(GROUP))
    offset = code.everywhere(code.read(tile.leaves[3], number(0), F32), lanes)
    constants = []
    for column, codes in zip(tile.columns, tile.read(1, row, I8), strict=True):
        place = code.add(code.mul(row, groups), code.sdiv(column, number(GROUP)))
        scale = code.everywhere(code.read(tile.leaves[2], place, F32), lanes)
        constants.append(code.multiply_add(*tile.floats("uitofp", [codes]), scale, offset))
    return constants
