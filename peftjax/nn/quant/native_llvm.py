"""A little vocabulary over llvmlite, in which `native_loops` writes its vector loops, and the compiler behind it.

Vectors are written as LLVM vectors (`<16 x float>`) and not left to a vectoriser, so that the code that comes out is known: every load,
unpacking and fused multiply-add of a loop stands in it once. LLVM lowers the same text to AVX-512, AVX2 or NEON; how many lanes a vector
has, and how many sums fit the registers, is said by `Machine`. Compiling one loop takes 80 ms for one row of x, 250 ms for eight.
"""

import contextlib
import dataclasses
import functools

import llvmlite.binding as llvm
from llvmlite import ir

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F16, F32, POINTER = ir.HalfType(), ir.FloatType(), ir.PointerType()
_ALIGN = {str(I8): 1, str(I16): 2, str(F16): 2, str(I32): 4, str(F32): 4, str(I64): 8}


@dataclasses.dataclass(frozen=True)
class Machine:
    """A processor as LLVM names it: what to compile for, lanes of a float32 vector, and vectors of sums that fit in registers."""

    triple: str
    cpu: str
    features: str
    lanes: int
    sums: int

    def has(self, feature: str) -> bool:
        """Whether the processor has `feature` ("avx512f")."""
        return f"+{feature}" in self.features.split(",")


def machine(features: dict[str, bool], triple: str, cpu: str) -> Machine | None:
    """The machine with these features, None where it lacks what the loops need: vectors, and float16 in hardware."""
    text = ",".join(("+" if there else "-") + name for name, there in sorted(features.items()))
    if triple.startswith(("aarch64", "arm64")):
        return Machine(triple, cpu, text, lanes=4, sums=16)
    if not triple.startswith("x86_64") or not all(features.get(name) for name in ("avx2", "fma", "f16c")):
        return None
    wide = features.get("avx512f") and features.get("avx512vl")
    return Machine(triple, cpu, text, lanes=16, sums=8) if wide else Machine(triple, cpu, text, lanes=8, sums=8)


@functools.cache
def host() -> Machine | None:
    """The machine this runs on, or None where the loops cannot run."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return machine(dict(llvm.get_host_cpu_features()), llvm.get_process_triple(), llvm.get_host_cpu_name())


class Code:
    """One function being written: `code.add(x, y)` and so on are llvmlite's instructions, the methods here are the ones it lacks."""

    def __init__(self, name: str, pointers: int, numbers: int):
        self.module = ir.Module(name)
        kind = ir.FunctionType(ir.VoidType(), [POINTER] * pointers + [I64] * numbers)
        self.function = ir.Function(self.module, kind, name)
        self.builder = ir.IRBuilder(self.function.append_basic_block())

    def __getattr__(self, name):
        return getattr(self.builder, name)

    @contextlib.contextmanager
    def loop(self, start, stop, step: int):
        """for (i = start; i < stop; i += step): yields i."""
        before, body, after = self.block, self.append_basic_block(), self.append_basic_block()
        self.cbranch(self.icmp_signed("<", start, stop), body, after)
        self.position_at_end(body)
        index = self.phi(I64)
        index.add_incoming(start, before)
        yield index
        following = self.add(index, number(step))
        index.add_incoming(following, self.block)
        self.cbranch(self.icmp_signed("<", following, stop), body, after)
        self.position_at_end(after)

    def at(self, pointer, index, kind):
        """&((kind *) pointer)[index]"""
        return self.gep(pointer, [index], source_etype=kind)

    def read(self, pointer, index, kind, lanes: int = 0):
        """((kind *) pointer)[index], or as many neighbours from there on as there are lanes."""
        whole = ir.VectorType(kind, lanes) if lanes else kind
        return self.load(self.at(pointer, index, kind), typ=whole, align=_ALIGN[str(kind)])

    def write(self, value, pointer, index):
        """((float *) pointer)[index] = value, of one or several lanes."""
        self.store(value, self.at(pointer, index, F32), align=_ALIGN[str(F32)])

    def everywhere(self, value, lanes: int):
        """The scalar `value` in all lanes."""
        nothing = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
        first = self.insert_element(nothing, value, ir.Constant(I32, 0))
        return self.shuffle_vector(first, nothing, constant(I32, [0] * lanes))

    def intrinsic(self, name: str, kind, *values, reorder: bool = False):
        """Calls LLVM's intrinsic `name`, which gives a `kind`; a sum may be reordered where that is said."""
        found = self.module.globals.get(name) or ir.Function(self.module, ir.FunctionType(kind, [v.type for v in values]), name)
        return self.call(found, values, fastmath=("reassoc",) if reorder else ())

    def multiply_add(self, x, y, z):
        """x y + z, fused."""
        return self.intrinsic(f"llvm.fmuladd.v{x.type.count}f32", x.type, x, y, z)

    def smaller(self, x, y):
        """min(x, y) of two numbers."""
        return self.select(self.icmp_signed("<", x, y), x, y)


def number(value: int):
    """The constant `value` of 64 bits."""
    return ir.Constant(I64, value)


def constant(kind, values):
    """The constant vector of `values`."""
    return ir.Constant(ir.VectorType(kind, len(values)), list(values))


def compile_text(text: str, on: Machine) -> llvm.ExecutionEngine:
    """LLVM assembly -> machine code in memory, for as long as the engine lives."""
    target = llvm.Target.from_triple(on.triple).create_target_machine(on.cpu, on.features, opt=3, jit=True)
    module = llvm.parse_assembly(text)
    module.triple, module.data_layout = on.triple, str(target.target_data)
    module.verify()
    tuning = llvm.create_pipeline_tuning_options(speed_level=3)
    tuning.loop_unrolling = False  # the loops are unrolled as far as it pays where they are written
    passes = llvm.create_pass_builder(target, tuning)
    passes.getModulePassManager().run(module, passes)
    engine = llvm.create_mcjit_compiler(module, target)
    engine.finalize_object()
    return engine
