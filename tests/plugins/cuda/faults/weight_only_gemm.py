"""Faults that the cases of `weight_only_gemm` with int4 weights must find."""

from __future__ import annotations

from plugins.cuda.case import Case
from tests.plugins.cuda.mutation import Fault

KERNEL = "include/slipway/weight_only_gemm.cuh"
LAUNCHER = "csrc/weight_only_gemm.cu"
ROWS = "csrc/weight_only_gemm_launch.hpp"

DEFINES = ("SLIPWAY_ONLY_FLOAT16",)
LEFT_OUT = ("weight_only_gemm_int8.cu", "weight_only_gemm_e4m3.cu")


def chosen(case: Case) -> bool:
    """Whether the case is of int4 weights."""
    return case.name.startswith("int4")


FAULTS = [
    Fault(
        "a stage is used before it is there",
        KERNEL,
        "ptx::cp_async_wait<Form::kStages - 2>();",
        "ptx::cp_async_wait<Form::kStages - 1>();",
    ),
    Fault(
        "no wait for the last stages",
        KERNEL,
        "    ptx::cp_async_commit();\n    if (block.has_slab(stage))",
        "    if (block.has_slab(stage))",
    ),
    Fault(
        "no barrier in the pipeline",
        KERNEL,
        "    __syncthreads();  // the stage is there for all",
        "    // ",
    ),
    Fault(
        "no barrier before the sums take the stages' memory",
        KERNEL,
        "  __syncthreads();\n  if (p.splits > 1) ptx::next",
        "  if (p.splits > 1) ptx::next",
    ),
    Fault(
        "no barrier between the sums' write and read",
        KERNEL,
        "    __syncthreads();\n    const int rows = p.rows",
        "    const int rows = p.rows",
    ),
    Fault(
        "a stage ahead of its place",
        KERNEL,
        "block.load(stage + Form::kStages - 1);",
        "block.load(stage + Form::kStages);",
    ),
    Fault(
        "one stage too few is loaded",
        KERNEL,
        "if (stage + Form::kStages - 1 < end)",
        "if (stage + Form::kStages < end)",
    ),
    Fault(
        "stages of the next split are loaded",
        KERNEL,
        "begin + p.stages_in_split < stages ? begin + p.stages_in_split : stages;",
        "stages;",
    ),
    Fault("rows beyond the last are read", KERNEL, "first_row + row < p.rows && k < p.k", "k < p.k"),
    Fault("x beyond k is read", KERNEL, "first_row + row < p.rows && k < p.k", "first_row + row < p.rows"),
    Fault(
        "slabs beyond k are read",
        KERNEL,
        "return has_columns && slab_of(stage) < p.slabs;",
        "return has_columns;",
    ),
    Fault("columns beyond n are read", KERNEL, "return has_columns && slab_of", "return slab_of"),
    Fault(
        "a part of x is not loaded",
        KERNEL,
        "(chunks + kGemmThreads - 1) / kGemmThreads; i++",
        "(chunks + kGemmThreads - 1) / kGemmThreads - (kGemmThreads < chunks); i++",
    ),
    Fault(
        "units of another order",
        KERNEL,
        "int64_t(column_block) * p.slabs + slab_of(stage);",
        "int64_t(slab_of(stage)) * p.column_blocks + column_block;",
    ),
    Fault(
        "the first tile's weights",
        KERNEL,
        "p.weight + unit * kGemmUnitBytes + j * 512",
        "p.weight + unit * kGemmUnitBytes",
    ),
    Fault(
        "the group of the slab before",
        KERNEL,
        "slab_of(stage) / p.slabs_in_group * Form::kGroupsInSlab",
        "(slab_of(stage) + 1) / p.slabs_in_group * Form::kGroupsInSlab",
    ),
    Fault(
        "one group in a slab",
        KERNEL,
        "p.slabs_in_group * Form::kGroupsInSlab + lane_group",
        "p.slabs_in_group + lane_group",
    ),
    Fault(
        "scales beyond k are read", KERNEL, "const bool valid = group < p.groups;", "const bool valid = true;"
    ),
    Fault("no zero points", KERNEL, "if (Form::kZeros && p.zero) {", "if (false) {"),
    Fault(
        "zero points are not loaded",
        KERNEL,
        "if (Form::kZeros && p.zero) ptx::cp_async_small",
        "if (false) ptx::cp_async_small",
    ),
    Fault("the zero point of int4 is 7", KERNEL, "uint32_t zero = 8)", "uint32_t zero = 7)"),
    Fault("the zero point of large nibbles", KERNEL, "0x63806380u", "0x63876387u"),
    Fault("large nibbles are not scaled", KERNEL, "0x2c002c00u", "0x3c003c00u"),
    Fault(
        "the wrong half of the nibbles",
        KERNEL,
        "i == 0 ? eight : eight >> 8;",
        "i == 0 ? eight >> 8 : eight;",
    ),
    Fault(
        "zero points of another column",
        KERNEL,
        "zeros(stage) + group * 64 + g * 8 + j * 2",
        "zeros(stage) + group * 64 + g * 8",
    ),
    Fault(
        "scales of another column",
        KERNEL,
        "scales(stage) + group * 128 + g * 16 + j * 4",
        "scales(stage) + group * 128 + g * 16",
    ),
    Fault(
        "scales of the first group", KERNEL, "scales(stage) + group * 128 + g * 16", "scales(stage) + g * 16"
    ),
    Fault(
        "columns g and g + 8 share a scale",
        KERNEL,
        "sum[j][r][2] += scale.y * product[r][2]",
        "sum[j][r][2] += scale.x * product[r][2]",
    ),
    Fault(
        "fragments exchanged",
        KERNEL,
        "a[0][half] = out[0], a[0][half + 2] = out[1], a[1][half] = out[2]",
        "a[0][half] = out[1], a[0][half + 2] = out[0], a[1][half] = out[2]",
    ),
    Fault(
        "x of the first tile of rows",
        KERNEL,
        "Tile::at(r * 8 + lane % 8, chunk)",
        "Tile::at(lane % 8, chunk)",
    ),
    Fault(
        "one warp's slabs are left out",
        KERNEL,
        "for (int w = 0; w < kGemmSlabWarps; w++) total",
        "for (int w = 1; w < kGemmSlabWarps; w++) total",
    ),
    Fault(
        "rows and columns of the sums",
        KERNEL,
        "r * 8 + t * 2 + i % 2, column = first + j * 16 + i / 2 * 8 + g",
        "r * 8 + t * 2 + i / 2, column = first + j * 16 + i % 2 * 8 + g",
    ),
    Fault("columns beyond n are written", KERNEL, "    if (n >= p.n) return;\n", ""),
    Fault(
        "rows beyond the last are written",
        KERNEL,
        "p.rows - first_row < Form::kRows ? p.rows - first_row : Form::kRows;",
        "Form::kRows;",
    ),
    Fault(
        "only the first rows of a block are written",
        KERNEL,
        "row += kGemmThreads / kGemmColumns",
        "row += kGemmThreads",
    ),
    Fault(
        "the splits overwrite one another",
        KERNEL,
        "p.partial[(int64_t(split) * p.rows",
        "p.partial[(0 * p.rows",
    ),
    Fault(
        "no bias",
        KERNEL,
        "from_float<T>(total * channel_scale + bias);\n    }\n  }\n};",
        "from_float<T>(total * channel_scale);\n    }\n  }\n};",
    ),
    Fault(
        "splits' bias is left",
        KERNEL,
        "static_cast<T*>(p.y)[i] = from_float<T>(total * channel_scale + bias);",
        "static_cast<T*>(p.y)[i] = from_float<T>(total * channel_scale);",
    ),
    Fault("a split is not merged", KERNEL, "split < p.splits; split++", "split < p.splits - 1; split++"),
    Fault("the merge takes rows of n", KERNEL, "row * p.padded_n() + n];", "row * p.n + n];"),
    Fault(
        "groups of 128 are of 64",
        LAUNCHER,
        "p.slabs_in_group = std::max(1, group / int(slab_of(weight)));",
        "p.slabs_in_group = 1;",
    ),
    Fault(
        "splits of too few stages",
        LAUNCHER,
        "return {rounded_up(stages, each), each};",
        "return {rounded_up(stages, each), each - (count > 1)};",
    ),
    Fault(
        "a part's fragments come twice",
        KERNEL,
        "Codes::expand(words[2 * part], words[2 * part + 1]",
        "Codes::expand(words[0], words[1]",
    ),
    Fault("columns g have the words of g + 8", KERNEL, "half == 0 ? low : high", "half == 0 ? high : low"),
    Fault(
        "columns g + 8 have the zero point of g",
        KERNEL,
        "expand_codes<T>(word, zero[half], out);",
        "expand_codes<T>(word, zero[0], out);",
    ),
    Fault("steps of x exchanged", KERNEL, "b[part * Codes::kPartSteps + s][r]);", "b[s][r]);"),
    Fault(
        "x of the first slab",
        KERNEL,
        "(slab_warp * Codes::kSteps + group * steps + s) * 2",
        "(group * steps + s) * 2",
    ),
    Fault(
        "x of the first group",
        KERNEL,
        "(slab_warp * Codes::kSteps + group * steps + s) * 2",
        "(slab_warp * Codes::kSteps + s) * 2",
    ),
    Fault("weights of the first group", KERNEL, "+ group * 2 * parts);", ");"),
    Fault(
        "weights of the first tile",
        KERNEL,
        "weights(stage) + j * 512 + lane * 16) + group",
        "weights(stage) + lane * 16) + group",
    ),
    Fault(
        "the last column block is left",
        ROWS,
        "(p.column_blocks + kGemmColumnWarps - 1) / kGemmColumnWarps",
        "p.column_blocks / kGemmColumnWarps",
    ),
]
