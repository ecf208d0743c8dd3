"""Compiled loops as targets of XLA's typed foreign function interface (`jax.ffi`, xla/ffi/api/c_api.h of version 0.3).

XLA calls `handler` with a frame: the buffers with their shapes, and functions of its own. The handler says the version it was written
for when it is asked for metadata, and does the work in the execution stage. Shapes are read from the frame, so one loop serves all.

Columns are cut into parts of equal width. The calling thread takes part after part; where there is enough work, XLA's own threads are asked
to do the same. A thread that comes too late finds no part left and does nothing, so that no call ever waits for a busy pool, only
for parts that were begun. The job lies on the heap and goes with its last thread.
"""

import ctypes
import re
import threading
from pathlib import Path

import jax

from peftjax.nn.quant.native_llvm import compile_text, host
from peftjax.nn.quant.native_loops import CHUNK, LEAVES, SCRATCH, Loop, write_loop

VERSION = (0, 3)  # of the interface; the structs below are those of major version 0, which later minor ones only add to
ALONE = 1 << 18  # steps (a weight unpacked is three, and one a row) that one thread does before another would have begun

_TEXT = """
%Args = type { i64, ptr, i64, ptr, ptr }                          ; size of the struct, extension, count, types, buffers
%Frame = type { i64, ptr, ptr, ptr, i32, %Args, %Args }           ; size, extension, api, context, stage, arguments, results
%Buffer = type { i64, ptr, i32, ptr, i64, ptr }                   ; size, extension, dtype, data, rank, dims
%Version = type { i64, ptr, i32, i32 }                            ; size, extension, major, minor
%Metadata = type { i64, %Version, i32, i64 }                      ; size, version, traits, type of state
%Extension = type { i64, i32, ptr, ptr }                          ; size, type, next, metadata
%Api = type { i64, ptr, %Version, ptr, ptr, ptr, ptr, ptr, ptr, ptr, ptr, ptr, ptr, ptr, ptr, ptr, ptr }
%Threads = type { i64, ptr, ptr, ptr }                            ; size, extension, context, number
%Schedule = type { i64, ptr, ptr, ptr, ptr }                      ; size, extension, context, task, data
%Error = type { i64, ptr, ptr }                                   ; size, extension, error
%Job = type { i64, i64, i64, i64, i64, i64, i64, [<POINTERS> x ptr] } ; next part, done, holders, parts, width, k, n, buffers

declare ptr @malloc(i64)
declare void @free(ptr)
declare i32 @sched_yield()

define internal void @take_parts(ptr %job) {
  %scratch = alloca [<SCRATCH> x float], align 64
  %done.at = getelementptr %Job, ptr %job, i32 0, i32 1
  %parts.at = getelementptr %Job, ptr %job, i32 0, i32 3
  %width.at = getelementptr %Job, ptr %job, i32 0, i32 4
  %k.at = getelementptr %Job, ptr %job, i32 0, i32 5
  %n.at = getelementptr %Job, ptr %job, i32 0, i32 6
  %parts = load i64, ptr %parts.at
  %width = load i64, ptr %width.at
  %k = load i64, ptr %k.at
  %n = load i64, ptr %n.at
<LOAD_BUFFERS>
  br label %next
next:
  %part = atomicrmw add ptr %job, i64 1 acq_rel
  %left = icmp slt i64 %part, %parts
  br i1 %left, label %work, label %end
work:
  %low = mul i64 %part, %width
  %stop = add i64 %low, %width
  %over = icmp sgt i64 %stop, %n
  %high = select i1 %over, i64 %n, i64 %stop
  call void @loop(<BUFFERS>, ptr %scratch, i64 %k, i64 %n, i64 %low, i64 %high)
  %done = atomicrmw add ptr %done.at, i64 1 acq_rel
  br label %next
end:
  ret void
}

define internal void @let_go(ptr %job) {
  %holders.at = getelementptr %Job, ptr %job, i32 0, i32 2
  %holders = atomicrmw sub ptr %holders.at, i64 1 acq_rel
  %last = icmp eq i64 %holders, 1
  br i1 %last, label %free, label %end
free:
  call void @free(ptr %job)
  br label %end
end:
  ret void
}

define internal void @task(ptr %job) {
  call void @take_parts(ptr %job)
  call void @let_go(ptr %job)
  ret void
}

define internal void @drop(ptr %api, ptr %error) {
  %args = alloca %Error
  store %Error { i64 24, ptr null, ptr null }, ptr %args
  %error.at = getelementptr %Error, ptr %args, i32 0, i32 2
  store ptr %error, ptr %error.at
  %destroy.at = getelementptr %Api, ptr %api, i32 0, i32 6
  %destroy = load ptr, ptr %destroy.at
  call void %destroy(ptr %args)
  ret void
}

define ptr @handler(ptr %frame) {
  %threads = alloca i64
  %threads.args = alloca %Threads
  %schedule.args = alloca %Schedule
  %extension.at = getelementptr %Frame, ptr %frame, i32 0, i32 1
  %extension = load ptr, ptr %extension.at
  %asked = icmp ne ptr %extension, null
  br i1 %asked, label %metadata, label %stage

metadata:
  %metadata.at = getelementptr %Extension, ptr %extension, i32 0, i32 3
  %meta = load ptr, ptr %metadata.at
  %version.at = getelementptr %Metadata, ptr %meta, i32 0, i32 1
  store %Version { i64 24, ptr null, i32 <MAJOR>, i32 <MINOR> }, ptr %version.at
  %traits.at = getelementptr %Metadata, ptr %meta, i32 0, i32 2
  store i32 0, ptr %traits.at
  %state.at = getelementptr %Metadata, ptr %meta, i32 0, i32 3
  store i64 0, ptr %state.at
  ret ptr null

stage:
  %stage.at = getelementptr %Frame, ptr %frame, i32 0, i32 4
  %in = load i32, ptr %stage.at
  %execute = icmp eq i32 %in, 3
  br i1 %execute, label %work, label %end

work:
  %args.at = getelementptr %Frame, ptr %frame, i32 0, i32 5, i32 4
  %args = load ptr, ptr %args.at
  %rets.at = getelementptr %Frame, ptr %frame, i32 0, i32 6, i32 4
  %rets = load ptr, ptr %rets.at
  %job = call ptr @malloc(i64 <JOB_BYTES>)
<FIND_BUFFERS>
  %x.dims.at = getelementptr %Buffer, ptr %arg0, i32 0, i32 5
  %x.dims = load ptr, ptr %x.dims.at
  %k.from = getelementptr i64, ptr %x.dims, i64 1
  %k = load i64, ptr %k.from
  %out.dims.at = getelementptr %Buffer, ptr %ret0, i32 0, i32 5
  %out.dims = load ptr, ptr %out.dims.at
  %n.from = getelementptr i64, ptr %out.dims, i64 1
  %n = load i64, ptr %n.from

  ; threads, at most as many as it pays to wake
  %api.at = getelementptr %Frame, ptr %frame, i32 0, i32 2
  %api = load ptr, ptr %api.at
  %context.at = getelementptr %Frame, ptr %frame, i32 0, i32 3
  %context = load ptr, ptr %context.at
  store i64 1, ptr %threads
  %weights = mul i64 %k, %n
  %steps = mul i64 %weights, <STEPS>
  %shares = sdiv i64 %steps, <ALONE>
  %worth = icmp sgt i64 %shares, 1
  br i1 %worth, label %count, label %cut
count:
  store %Threads { i64 32, ptr null, ptr null, ptr null }, ptr %threads.args
  %t.context = getelementptr %Threads, ptr %threads.args, i32 0, i32 2
  store ptr %context, ptr %t.context
  %t.number = getelementptr %Threads, ptr %threads.args, i32 0, i32 3
  store ptr %threads, ptr %t.number
  %number.at = getelementptr %Api, ptr %api, i32 0, i32 16
  %number = load ptr, ptr %number.at
  %no.pool = call ptr %number(ptr %threads.args)
  %alone = icmp ne ptr %no.pool, null
  br i1 %alone, label %without, label %cut
without:
  call void @drop(ptr %api, ptr %no.pool)
  store i64 1, ptr %threads
  br label %cut

cut:
  %there = load i64, ptr %threads
  %few = icmp slt i64 %shares, %there
  %fewer = select i1 %few, i64 %shares, i64 %there
  %none = icmp slt i64 %fewer, 1
  %used = select i1 %none, i64 1, i64 %fewer
  ; parts = used · ceil(n / (used · CHUNK)), of ceil(tiles / parts) tiles each
  %round = mul i64 %used, <CHUNK>
  %r.above = add i64 %n, %round
  %r.most = sub i64 %r.above, 1
  %rounds = sdiv i64 %r.most, %round
  %parts = mul i64 %used, %rounds
  %t.most = add i64 %n, <TILE_1>
  %tiles = sdiv i64 %t.most, <TILE>
  %p.above = add i64 %tiles, %parts
  %p.most = sub i64 %p.above, 1
  %each = sdiv i64 %p.most, %parts
  %width = mul i64 %each, <TILE>
  store i64 0, ptr %job
  %done.at = getelementptr %Job, ptr %job, i32 0, i32 1
  store i64 0, ptr %done.at
  %holders.at = getelementptr %Job, ptr %job, i32 0, i32 2
  store i64 %used, ptr %holders.at
  %parts.at = getelementptr %Job, ptr %job, i32 0, i32 3
  store i64 %parts, ptr %parts.at
  %width.at = getelementptr %Job, ptr %job, i32 0, i32 4
  store i64 %width, ptr %width.at
  %k.at = getelementptr %Job, ptr %job, i32 0, i32 5
  store i64 %k, ptr %k.at
  %n.at = getelementptr %Job, ptr %job, i32 0, i32 6
  store i64 %n, ptr %n.at
  store %Schedule { i64 40, ptr null, ptr null, ptr @task, ptr null }, ptr %schedule.args
  %s.context = getelementptr %Schedule, ptr %schedule.args, i32 0, i32 2
  store ptr %context, ptr %s.context
  %s.data = getelementptr %Schedule, ptr %schedule.args, i32 0, i32 4
  store ptr %job, ptr %s.data
  %schedule.at = getelementptr %Api, ptr %api, i32 0, i32 15
  br label %more

more:
  %helper = phi i64 [ 1, %cut ], [ %another, %asked.one ]
  %again = icmp slt i64 %helper, %used
  br i1 %again, label %ask, label %take
ask:
  %schedule = load ptr, ptr %schedule.at
  %refused = call ptr %schedule(ptr %schedule.args)
  %refuses = icmp ne ptr %refused, null
  br i1 %refuses, label %refusal, label %asked.one
refusal:
  call void @drop(ptr %api, ptr %refused)
  call void @let_go(ptr %job)
  br label %asked.one
asked.one:
  %another = add i64 %helper, 1
  br label %more

take:
  call void @take_parts(ptr %job)
  br label %wait
wait:
  %tries = phi i64 [ 0, %take ], [ %tries.next, %spin ]
  %done = load atomic i64, ptr %done.at acquire, align 8
  %all = icmp eq i64 %done, %parts
  br i1 %all, label %finish, label %more.time
more.time:
  %tries.next = add i64 %tries, 1
  %long = icmp sgt i64 %tries.next, 2000
  br i1 %long, label %give.way, label %spin
give.way:
  %ignored = call i32 @sched_yield()
  br label %spin
spin:
  br label %wait
finish:
  call void @let_go(ptr %job)
  br label %end
end:
  ret ptr null
}
"""


def write_handler(loop: Loop, leaves: int) -> str:
    """The text with `leaves` buffers after x; missing ones are null."""
    pointers = 2 + LEAVES
    find, load = [], []
    for i, (source, index) in enumerate([("rets", 0)] + [("args", i) for i in range(1 + leaves)]):
        name = ("ret" if source == "rets" else "arg") + str(index)
        find += [
            f"%{name}.at = getelementptr ptr, ptr %{source}, i64 {index}",
            f"%{name} = load ptr, ptr %{name}.at",
            f"%{name}.data.at = getelementptr %Buffer, ptr %{name}, i32 0, i32 3",
            f"%{name}.data = load ptr, ptr %{name}.data.at",
            f"%{name}.to = getelementptr %Job, ptr %job, i32 0, i32 7, i32 {i}",
            f"store ptr %{name}.data, ptr %{name}.to",
        ]
        load += [f"%buffer{i}.at = getelementptr %Job, ptr %job, i32 0, i32 7, i32 {i}", f"%buffer{i} = load ptr, ptr %buffer{i}.at"]
    passed = [f"ptr %buffer{i}" if i < 2 + leaves else "ptr null" for i in range(pointers)]
    values = {
        "POINTERS": pointers, "SCRATCH": SCRATCH, "JOB_BYTES": 8 * (7 + pointers), "MAJOR": VERSION[0], "MINOR": VERSION[1],
        "ALONE": ALONE, "STEPS": 3 + loop.rows, "CHUNK": CHUNK, "TILE": loop.tile, "TILE_1": loop.tile - 1,
        "BUFFERS": ", ".join(passed), "LOAD_BUFFERS": "\n".join(load), "FIND_BUFFERS": "\n".join(find),
    }  # fmt: skip
    return re.sub("<([A-Z_0-9]+)>", lambda match: str(values[match[1]]), _TEXT)


def interface_version() -> tuple[int, int] | None:
    """Version of the interface that the installed jaxlib has, from its header; None where there is no such header."""
    header = Path(jax.ffi.include_dir(), "xla/ffi/api/c_api.h")
    if not header.is_file():
        return None
    found = dict(re.findall(r"#define XLA_FFI_API_(MAJOR|MINOR) (\d+)", header.read_text(encoding="utf-8")))
    return (int(found["MAJOR"]), int(found["MINOR"])) if len(found) == 2 else None


def target(loop: Loop, leaves: int) -> str:
    """Compiles and registers a loop, once a process; returns the name to call it by."""
    with _LOCK:
        if loop not in _ENGINES:
            engine = compile_text(write_loop(loop, host()) + write_handler(loop, leaves), host())
            address = ctypes.CFUNCTYPE(ctypes.c_void_p)(engine.get_function_address("handler"))
            jax.ffi.register_ffi_target(loop.name, jax.ffi.pycapsule(address), platform="cpu")
            _ENGINES[loop] = engine
    return loop.name


_ENGINES = {}  # they own the machine code that XLA calls, until the process ends
_LOCK = threading.Lock()  # programs may be traced on several threads
