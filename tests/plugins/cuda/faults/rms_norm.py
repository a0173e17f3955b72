"""Faults that the cases of `rms_norm` and `layer_norm` must find; those of the rows' common part are here too."""

from __future__ import annotations

from tests.plugins.cuda.mutation import Fault

ROWS = "include/slipway/rows.cuh"
KERNEL = "include/slipway/norms.cuh"
LAUNCHER = "csrc/norms.cu"

DEFINES = ("SLIPWAY_ONLY_FLOAT16",)

FAULTS = [
    Fault("no barrier between the warps' sums", ROWS, "      __syncthreads();\n", ""),
    Fault("one slot for all reductions", ROWS, "      turn ^= 1;\n", ""),
    Fault(
        "a warp's sum is left out",
        ROWS,
        "for (int warp = 1; warp < threads / 32",
        "for (int warp = 2; warp < threads / 32",
    ),
    Fault("half a warp is summed", ROWS, "for (int offset = 16;", "for (int offset = 8;"),
    Fault(
        "every lane writes its slot",
        ROWS,
        "if (thread % 32 == 0) slot[thread / 32] = x;",
        "slot[thread / 32] = x + float(thread % 32);",
    ),
    Fault(
        "read beyond a ragged row",
        ROWS,
        "chunk[i] = i < count ? p[i] : from_float<T>(0.f);",
        "chunk[i] = p[i];",
    ),
    Fault("written beyond a ragged row", ROWS, "    if (i < count) p[i] = chunk[i];", "    p[i] = chunk[i];"),
    Fault(
        "the last chunk of a ragged row is left",
        ROWS,
        "chunks(int((columns_ + kChunk - 1) / kChunk))",
        "chunks(int(columns_ / kChunk))",
    ),
    Fault(
        "ragged rows are read in chunks", ROWS, "{ return columns % kChunk == 0; }", "{ return columns > 0; }"
    ),
    Fault("ragged rows count as whole", ROWS, "if (columns % kChunk != 0 || chunks >", "if (chunks >"),
    Fault(
        "long rows do not fit",
        ROWS,
        "chunks > kKeptChunks * kMaxRowThreads",
        "chunks > (kKeptChunks + 1) * kMaxRowThreads",
    ),
    Fault(
        "a warp has too long a row",
        ROWS,
        "if (chunks <= kKeptChunks * 32) return",
        "if (chunks <= kKeptChunks * 40) return",
    ),
    Fault(
        "too few threads for a row",
        ROWS,
        "(chunks + kKeptChunks - 1) / kKeptChunks",
        "chunks / (kKeptChunks + 1)",
    ),
    Fault(
        "chunks beyond the row are fetched",
        ROWS,
        "if (thread + i * threads < chunks) fetched[i]",
        "fetched[i]",
    ),
    Fault(
        "kept chunks are next to each other",
        ROWS,
        "f(thread + i * threads, kChunk, kept[i])",
        "f(thread * kKeptChunks + i, kChunk, kept[i])",
    ),
    Fault(
        "only the first rows of a persistent grid", ROWS, "row += int64_t(gridDim.x) * teams)", "row += rows)"
    ),
    Fault(
        "rows of a block's warps are apart", ROWS, "int64_t(blockIdx.x) * teams + ", "int64_t(blockIdx.x) + "
    ),
    Fault("results are multiplied twice", ROWS, "      if (!(kKept && own_scale)) result", "      result"),
    Fault(
        "reread values are not results", ROWS, "if (!(kKept && own_scale)) result", "if (!own_scale) result"
    ),
    Fault(
        "the largest result, not magnitude",
        ROWS,
        "most = fmaxf(most, fabsf(x[i]));",
        "most = fmaxf(most, x[i]);",
    ),
    Fault("a thread's own largest", ROWS, "most = team.max(most);", ""),
    Fault("the scale is multiplied with", ROWS, "inverse = 1.f / *to.scale;", "inverse = *to.scale;"),
    Fault("the scale of 128 codes", ROWS, "kMost = 127.f", "kMost = 128.f"),
    Fault("the range of another format", ROWS, "kMost = 448.f", "kMost = 240.f"),
    Fault("the inverse is written", ROWS, "usable ? scale : 0.f;", "usable ? inverse : 0.f;"),
    Fault(
        "rows of zeros have a scale of infinity",
        ROWS,
        "inverse = usable ? Quantized<Out>::kMost / most : 0.f;",
        "inverse = Quantized<Out>::kMost / most;",
    ),
    Fault("the row's scale goes to the first", ROWS, "to.row_scale[row] =", "to.row_scale[0] ="),
    Fault(
        "the mean of squares about zero",
        KERNEL,
        "squares += (x[i] - mean) * (x[i] - mean);",
        "squares += x[i] * x[i];",
    ),
    Fault(
        "what is beyond the row has a deviation", KERNEL, "        if (i < count) squares", "        squares"
    ),
    Fault("no mean is taken off", KERNEL, "x[i] = (x[i] - mean) * factor", "x[i] = x[i] * factor"),
    Fault("RMSNorm is centered too", KERNEL, "    if (p.centered) {", "    {"),
    Fault("a thread's own mean", KERNEL, "team.sum(total) * count_inverse", "total * count_inverse"),
    Fault(
        "the sum and not the mean of squares",
        KERNEL,
        "team.sum(squares) * count_inverse +",
        "team.sum(squares) +",
    ),
    Fault("no epsilon", KERNEL, " + p.epsilon);", ");"),
    Fault(
        "epsilon after the root",
        KERNEL,
        "1.f / sqrtf(team.sum(squares) * count_inverse + p.epsilon)",
        "1.f / (sqrtf(team.sum(squares) * count_inverse) + p.epsilon)",
    ),
    Fault("no weight offset", KERNEL, "(weight + p.weight_offset)", "weight"),
    Fault("no skip", KERNEL, "x[i] += to_float(fetched.skip[i]);", "x[i] += 0.f;"),
    Fault("the sum is not written", KERNEL, "if (sum) write_chunk", "if (sum && whole) write_chunk"),
    Fault("bias is a factor", KERNEL, "{ x[i] += bias; }", "{ x[i] *= bias; }"),
    Fault(
        "the bias of the first chunk",
        KERNEL,
        "with_vector<T>(p.bias, p.float_weight, chunk,",
        "with_vector<T>(p.bias, p.float_weight, 0,",
    ),
    Fault(
        "float weights are read as T",
        LAUNCHER,
        "p.float_weight = weight == kFloat32;",
        "p.float_weight = false;",
    ),
    Fault("the norms are exchanged", LAUNCHER, "p.centered = centered;", "p.centered = !centered;"),
    Fault("the rows' stride is of another array", KERNEL, "p.skip ? p.skip + begin : nullptr", "p.skip"),
]
