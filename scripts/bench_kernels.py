"""Times products with quantised kernels at the few rows of decoding, against float32's, on this machine.

    python scripts/bench_kernels.py                                    all kinds at 1 row, shapes of SmolLM2-135M
    python scripts/bench_kernels.py --kinds affine4 --rows 1,8,16 --shapes 576x1536
"""

from absl import app, flags

KINDS = flags.DEFINE_list("kinds", None, "Kinds of kernels; default is all.")
ROWS = flags.DEFINE_list("rows", ["1"], "Rows of x.")
SHAPES = flags.DEFINE_list("shapes", None, "Shapes KxN; default is those of SmolLM2-135M.")
REPEATS = flags.DEFINE_integer("repeats", 15, "Times that each form is timed; the median is printed.", lower_bound=1)


def main(_):
    from peftjax.train import bench_kernels as bench

    shapes = [tuple(map(int, shape.split("x"))) for shape in SHAPES.value] if SHAPES.value else bench.SHAPES
    rows = []
    for kind in KINDS.value or bench.KINDS:
        for k, n in shapes:
            rows += [bench.time_case(kind, k, n, int(count), REPEATS.value) for count in ROWS.value]
    print(bench.as_table(rows))


if __name__ == "__main__":
    app.run(main)
