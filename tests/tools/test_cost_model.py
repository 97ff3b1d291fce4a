"""The cost model: its counts, its predictions beside what was measured, and its page."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import ROOT, TOOLS

sys.path.insert(0, str(TOOLS))
import cost_model
import mac_report
import synthetic_model
from cost import banks, compiled, counts, kernels, measured, models, sass, tables
from cost import report as cost_report
from cost.chips import CHIPS, apple_with
from cost.estimate import Loop, Work, estimate
from cost.formats import FORMATS
from mac_report_schema import REPORT, problems

from oxibonsai import formats

H200, M1 = CHIPS["H200"], CHIPS["M1"]

# A loop whose path by the definition is the longer one, after one that is left at once.
DISASSEMBLY = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   IADD3 R2, R2, 0x1, RZ ;
        /*0020*/               @P1 BRA `(.L_x_0) ;
.L_x_1:
        /*0030*/                   UIADD3 UR4, UR4, 0x1, URZ ;
        /*0040*/                   LDG.E.128 R4, desc[UR6][R2.64] ;
        /*0050*/              @!P2 BRA `(.L_x_2) ;
        /*0060*/                   LOP3.LUT R8, R4, 0x3c, RZ, 0xc0, !PT ;
        /*0070*/                   LDS R9, [R8+0x40] ;
        /*0080*/                   FADD R10, R10, R9 ;
        /*0090*/                   STS.128 [R8], R4 ;
        /*00a0*/                   BRA `(.L_x_3) ;
.L_x_2:
        /*00b0*/                   FMUL R1, R1, R1 ;
        /*00c0*/                   FMUL R1, R1, R1 ;
        /*00d0*/                   FMUL R1, R1, R1 ;
        /*00e0*/                   FMUL R1, R1, R1 ;
        /*00f0*/                   FMUL R1, R1, R1 ;
        /*0100*/                   FMUL R1, R1, R1 ;
.L_x_3:
        /*0110*/                   HMMA.16816.F32 R12, R4, R8, R12 ;
        /*0120*/               @P0 BRA `(.L_x_1) ;
        /*0130*/                   EXIT ;
.L_x_4:
        /*0140*/                   BRA `(.L_x_4);
"""


def test_the_shortest_way_round_the_heaviest_loop_is_counted():
    code = sass.Code.parse(DISASSEMBLY)
    assert code.back_edges() == [(1, 2), (3, 18)]
    assert sass.count(code.main_loop("mma")) == {
        **{"alu": 1, "control": 3, "fma": 1, "memory": 1, "mma": 1, "shared": 2},
        **{"shared_cycles": 5, "total": 10, "uniform": 1},
    }


def test_a_code_without_the_loop_is_refused():
    with pytest.raises(ValueError, match="no loop with the pipe 'mma'"):
        sass.Code.parse(DISASSEMBLY.replace("HMMA", "FADD")).main_loop("mma")


def test_a_loop_within_is_not_entered_however_short_it_is():
    text = """
    .L_x_0:
    /*0000*/ MOV R1, R2 ;
    /*0010*/ @P1 BRA `(.L_x_2) ;
    .L_x_1:
    /*0020*/ FADD R1, R1, R2 ;
    /*0030*/ @P0 BRA `(.L_x_1) ;
    /*0040*/ BRA `(.L_x_3) ;
    .L_x_2:
    /*0050*/ FMUL R1, R1, R2 ;
    /*0060*/ FMUL R1, R1, R2 ;
    /*0070*/ FMUL R1, R1, R2 ;
    /*0080*/ FMUL R1, R1, R2 ;
    .L_x_3:
    /*0090*/ @P2 BRA `(.L_x_0) ;
    /*00a0*/ EXIT ;"""
    loop = sass.Code.parse(text.replace("\n    ", "\n")).main_loop("fma")
    assert [one.opcode for one in loop] == ["MOV", "BRA", *["FMUL"] * 4, "BRA"]


@pytest.mark.parametrize(
    ("opcode", "pipe"),
    [
        *(
            ("FFMA.FTZ", "fma"),
            ("IMAD.WIDE.U32", "imad"),
            ("HFMA2.MMA", "half"),
            ("LDS.U", "shared"),
        ),
        *(("USHF.R.U32.HI", "uniform"), ("IMMA.16832.S8.S8", "mma"), ("SHFL.BFLY", "shuffle")),
        *(
            ("I2FP.F32.S32", "alu"),
            ("PRMT", "alu"),
            ("WARPSYNC.ALL", "control"),
            ("MUFU.EX2", "sfu"),
        ),
    ],
)
def test_every_instruction_has_its_pipe(opcode, pipe):
    assert sass.pipe_of(opcode) == pipe


def test_the_stored_counts_add_up():
    stored = counts.store()["kernels"]
    assert set(stored) <= {one.key for one in compiled.KERNELS}
    for key, one in stored.items():
        pipes = {name: n for name, n in one["pipes"].items() if name != "shared_cycles"}
        assert pipes.pop("total") == sum(pipes.values()), key
        assert one["pipes"]["shared_cycles"] >= pipes.get("shared", 0), key
        assert 0 < one["registers"] <= 255
        assert one["group_memory"] <= 32 * 1024
        assert one["pipes"]["total"] < one["length"]


@pytest.mark.parametrize("kind", counts.SET_ROWS)
@pytest.mark.parametrize("name", FORMATS)
def test_what_is_counted_by_hand_is_like_the_compiled_code(kind, name):
    """NVIDIA's code needs more: an addition for each address, moves, and control."""
    for rows in (1, 2, 4):
        product, fmt = kernels.Product("", 24_576, 4096), FORMATS[name]
        by_hand = kernels.gemv(M1, product, fmt, f"{kind}-{rows}").loop
        compiled_code = kernels.gemv(H200, product, fmt, f"{kind}-{rows}").loop
        assert compiled_code.source.startswith("NVRTC")
        assert 0.6 < by_hand.pipes["total"] / compiled_code.pipes["total"] < 1.0


@pytest.fixture(scope="module")
def compiler() -> compiled.Compiler:
    try:
        return compiled.Compiler()
    except FileNotFoundError as error:
        if os.environ.get("OXIBONSAI_REQUIRE_NVRTC"):
            pytest.fail(str(error))
        pytest.skip(str(error))


COUNTED_ANEW = [
    one
    for one in compiled.KERNELS
    if one.name
    in ("gemv_q1_g128", "gemv_q1_g128_norm_slices", "gemm_q1_g128_half", "gemm_q2_g64_halves")
    and one.constants[0] in (2, 22, 444)
]


@pytest.mark.parametrize("kernel", COUNTED_ANEW, ids=lambda one: one.key)
def test_the_code_is_the_one_that_was_counted(compiler, kernel):
    """Another compiler may choose other instructions, but not many: a tenth of them."""
    if kernel.name not in compiler.kernels:
        pytest.skip(f"there is no {kernel.name}")
    cubin, log = compiler.cubin(kernel)
    stored = counts.store()["kernels"][kernel.key]
    message = "python tools/cost_model.py --count, then --update"
    assert compiled.length_of(cubin) == pytest.approx(stored["length"], rel=0.1), message
    assert compiled.resources(log)[1] == stored["group_memory"], message
    tool = shutil.which("nvdisasm")
    if tool:
        now = compiled.counted(compiler, kernel, tool)["pipes"]["total"]
        assert now == pytest.approx(stored["pipes"]["total"], rel=0.1), message


def test_without_a_disassembler_nothing_is_written(monkeypatch, tmp_path):
    monkeypatch.setattr(compiled, "STORE", tmp_path / "counted.json")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no nvdisasm"):
        compiled.update()
    assert not compiled.STORE.exists()


def loop_of(total: float = 100.0, **pipes: float) -> Loop:
    return Loop({"total": total, **pipes}, 32, 0, "test")


def test_bytes_bound_a_dispatch_of_few_instructions():
    work = Work(loop_of(10.0), 1320, 8, 1, 3.943e9)
    found = estimate(H200, work)
    assert found.bound == "memory"
    assert found.seconds == pytest.approx(H200.start + 1e-3)
    assert found.parts["bytes"] == pytest.approx(3.943e9 / 4.8e12)


def test_the_busiest_pipe_bounds_a_dispatch_of_many_instructions():
    work = Work(loop_of(1000.0, alu=900.0), 132 * 8, 8, 100, 0.0)
    found = estimate(H200, work)
    assert found.bound == "alu"
    clocks = 8 * 8 * 100 * 900 / 2 / H200.efficiency
    assert found.seconds == pytest.approx(H200.start + clocks / H200.clock)


def test_latency_bounds_a_dispatch_of_few_simdgroups():
    work = Work(loop_of(), 132, 1, 10, 0.0, waits=2, near_waits=1)
    found = estimate(H200, work)
    assert found.bound == "latency"
    expected = H200.start + 12 * H200.latency + H200.near_latency
    assert found.seconds == pytest.approx(expected)


works = st.builds(
    Work,
    st.builds(
        Loop,
        st.fixed_dictionaries(
            {"total": st.floats(1, 2000), "alu": st.floats(0, 1000)},
            optional={"shared_cycles": st.floats(0, 500), "multiplications": st.floats(1, 1e6)},
        ),
        st.integers(16, 255),
        st.integers(0, 32 * 1024),
        st.just("test"),
    ),
    st.integers(1, 10_000),
    st.integers(1, 16),
    st.floats(1, 1000),
    st.floats(0, 1e9),
)


@given(works, st.sampled_from(list(CHIPS.values())))
def test_no_dispatch_is_faster_than_its_limit_nor_slower_on_more_cores(work, chip):
    found = estimate(chip, work)
    assert found.seconds >= chip.start + found.limit * (1 - 1e-9)
    assert estimate(apple_with(chip, 2 * chip.cores), work).seconds <= found.seconds * (1 + 1e-9)


@pytest.mark.parametrize("name", FORMATS)
def test_the_formats_are_those_of_the_package(name):
    one, of_package = FORMATS[name], formats.get(name)
    assert one.name == of_package.device_format
    assert one.bits == of_package.bits
    assert one.group_size == of_package.group_size
    assert one.nbytes(3, 1024) == 3 * of_package.row_bytes(1024)


@pytest.mark.parametrize(("name", "other"), [("1.7B", "bonsai-1.7b"), ("8B", "bonsai-8b")])
def test_the_models_are_those_of_the_benchmarks(name, other):
    shape, (layer,) = synthetic_model.SHAPES[other], models.SHAPES[name].layers
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    assert [(p.matrix_rows, p.k) for p in layer.products] == [
        (q + 2 * kv, shape.hidden),
        (shape.hidden, q),
        (2 * shape.intermediate, shape.hidden),
        (shape.hidden, shape.intermediate),
    ]
    assert layer.n == shape.layers
    assert (models.SHAPES[name].head.n_rows, models.SHAPES[name].head.k) == (
        shape.vocab,
        shape.hidden,
    )


def test_every_measured_gemv_is_predicted_within_a_tenth():
    ratios = []
    for one in measured.GEMVS:
        product = kernels.Product("", one.n_rows, one.k)
        work = kernels.gemv(CHIPS[one.card], product, FORMATS[one.format], one.variant)
        ratios.append(estimate(CHIPS[one.card], work).seconds / one.seconds)
    assert len(ratios) >= 30
    assert 1 / 1.1 < min(ratios) < max(ratios) < 1.1


def test_every_measured_speed_is_predicted_within_a_quarter():
    for one in measured.SPEEDS:
        assert 1 / 1.25 < tables.predicted_speed(one) / one.speed < 1.25, one
    heads = models.SHAPES["8B"].layers[0].heads
    for positions, seconds in measured.ATTENTION.items():
        works = kernels.decode_attention(H200, heads, positions)
        assert 1 / 1.25 < sum(estimate(H200, w).seconds for w in works) / seconds < 1.25


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
def test_the_parts_of_a_step_are_its_whole_and_the_fastest_is_the_fastest(chip):
    shape, fmt = models.SHAPES["8B"], FORMATS["Q1_0"]
    parts = models.decode(chip, shape, fmt)
    assert models.seconds_of(parts) == pytest.approx(
        math.fsum(part.times * part.estimate.seconds for part in parts)
    )
    assert sum(p.times for p in parts if p.variant) == 4 * 36 + 1
    kinds = ("lookup",) if chip.family == "nvidia" else counts.SET_ROWS
    for kind in kinds:
        others = models.seconds_of(models.decode(chip, shape, fmt, variant=kind))
        assert models.seconds_of(parts) <= others
    bytes_alone = shape.weight_bytes(fmt) / chip.bandwidth
    assert models.seconds_of(parts) > bytes_alone
    one, two = (models.seconds_of(models.prompt(chip, shape, fmt, 512, 128, n)) for n in (1, 2))
    assert one < two
    assert one < 512 * models.seconds_of(parts)


def test_every_chip_has_its_sources():
    for chip in CHIPS.values():
        assert chip.sources
        assert chip.read < chip.bandwidth
    assert [chip.name for chip in tables.apple_chips()] == [
        f"M{n}{size}" for n in range(1, 6) for size in ("", " Pro", " Max")
    ]


def test_conflicts_count_the_different_words_of_a_bank():
    assert banks.conflict([0] * 32) == 1
    assert banks.conflict(list(range(32))) == 1
    assert banks.conflict([32 * lane for lane in range(32)]) == 32
    assert banks.Access("", "", lambda lane: 4 * lane, 4).turns == 4
    # What the pads of the shaders are for.
    assert banks.conflict([lane // 4 + 2 * (lane % 4) * 64 for lane in range(32)]) == 4
    turns = {one.kernel: one.turns // one.words for one in banks.ACCESSES if "36" not in one.what}
    assert {name for name, n in turns.items() if n > 1} == {"look-up with tables of 256"}


def test_the_page_has_the_tables_that_the_tool_prints():
    text = (ROOT / "docs" / "performance.md").read_text()
    assert cost_model.filled(text) == text, "python tools/cost_model.py --update"
    names = re.findall(r"^<!-- table: ([\w-]+) -->$", text, re.MULTILINE)
    assert sorted(names) == sorted(tables.TABLES)
    assert text.count("<!-- end -->") == len(names)


def run(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["cost_model.py", *map(str, arguments)])
    cost_model.main()


def test_a_table_is_printed_by_its_name(monkeypatch, capsys):
    run(monkeypatch, "conflicts")
    assert capsys.readouterr().out == f"conflicts\n\n{tables.conflicts()}\n\n"
    with pytest.raises(SystemExit):
        run(monkeypatch, "unknown")
    assert "no table 'unknown'; there are chips," in capsys.readouterr().err


def test_a_page_that_is_out_of_date_is_told_and_brought_up_to_date(monkeypatch, tmp_path, capsys):
    page = tmp_path / "performance.md"
    page.write_text("a\n<!-- table: conflicts -->\nold\n<!-- end -->\nz\n")
    monkeypatch.setattr(cost_model, "PAGE", page)
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, "--check")
    assert caught.value.code == 1
    assert "--update" in capsys.readouterr().err
    run(monkeypatch, "--update")
    table = tables.conflicts()
    expected = f"a\n<!-- table: conflicts -->\n\n{table}\n\n<!-- end -->\nz\n"
    assert page.read_text() == expected
    run(monkeypatch, "--check")


def report_of(chip: object, cores: int | None) -> dict[str, object]:
    """Return a report of a Mac whose times are ten microseconds and a speed of 100."""
    lookup = {"name": "8 vectors Q1_0", "shape": "12288 x 4096", "kernels": [], "bytes": 1}
    lookup |= {"seconds": 1e-3, "share": None}
    attention = lookup | {"name": "attention of 1 at 1000 f16", "shape": "32 of 128 over 8"}
    unknown = lookup | {"name": "rmsnorm", "shape": "4096"}
    variants = {"op": "gemv", "format": "Q1_0", "n_rows": 4096, "k": 4096}
    variants["seconds"] = {"lookup-1": 6e-5, "shuffle-2": 5e-5, "later-1": 1e-5}
    swiglu = {"op": "swiglu", "format": "Q2_0", "n_rows": 24_576, "k": 4096}
    swiglu["seconds"] = {"shuffle-1": 1e-4}
    model = {"model": "synthetic.gguf", "chunk": 128, "prompt_tokens": 512, "decode_tokens": 64}
    numbers = ["load_seconds", "first_prompt_seconds", "longest_prompt_submission_seconds"]
    numbers += ["prompt_tokens_per_second", "decode_tokens_per_second", "decode_device_seconds"]
    model |= dict.fromkeys([*numbers, "longest_decode_submission_seconds"], 100.0)
    return {
        **{"version": mac_report.VERSION, "commit": None, "python": "3.12", "device": None},
        **{"machine": {"chip": chip, "gpu_cores": cores}, "stages": [], "failures": []},
        **{"failures_left_out": 0, "bandwidth_bytes_per_second": 6e10, "untimed": []},
        "kernels": [lookup, attention, unknown],
        "variants": [variants, swiglu, variants | {"format": "F16"}],
        "models": [model | {"stats": {}}, model | {"model": "alice-q1_0.gguf", "stats": {}}],
    }


def test_a_report_stands_beside_what_was_predicted(monkeypatch, tmp_path, capsys):
    report = report_of("Apple M1", 7)
    assert problems(report, REPORT) == []
    path = tmp_path / "report.md"
    path.write_text(f"# Check\n\n~~~~json\n{json.dumps(report)}\n~~~~\n")
    run(monkeypatch, "--report", path)
    text = capsys.readouterr().out
    assert text.startswith("M1, 7 GPU cores\n\nMemory: predicted 59 GB/s, measured 60.\n")
    chip = apple_with(M1, 7)
    work = kernels.gemv(chip, kernels.Product("", 4096, 4096), FORMATS["Q1_0"], "lookup-1")
    seconds = estimate(chip, work).seconds
    cells = f"{1e6 * seconds:.1f} | 60.0 | {seconds / 6e-5:.2f}"
    assert f"| gemv Q1_0 | 4096 x 4096 | lookup-1 | {cells} |  |" in text
    assert re.search(r"\| shuffle-2 \| .* \| predicted and measured \|", text)
    assert re.search(r"\| swiglu Q2_0 \| 24576 x 4096 \| shuffle-1 \| \d+ \| 100 \|", text)
    assert re.search(r"\| 8 vectors Q1_0 \| 12288 x 4096 \| \d+ \| 1000 \|", text)
    assert re.search(
        r"\| attention of 1 at 1000 f16 \| 32 of 128 over 8 \| [\d.]+ \| 1000 \|", text
    )
    assert text.count("| prompt of 512 in chunks of 128 |") == 1
    assert all(name not in text for name in ("later", "rmsnorm", "F16"))


@pytest.mark.parametrize(
    ("chip", "message"),
    [("Apple M9", "no chip 'Apple M9'; it has H100,"), (None, "no chip 'None'")],
)
def test_a_chip_that_is_not_known_is_named(chip, message):
    with pytest.raises(ValueError, match=message):
        cost_report.compared(report_of(chip, None))


def test_times_of_a_card_are_compared_without_a_report(monkeypatch, tmp_path, capsys):
    variants = {"op": "swiglu", "format": "Q1_0", "n_rows": 24_576, "k": 4096}
    variants["seconds"] = {"lookup-2": 1.2e-5, "slices-3x8": 8e-6}
    times = {"device": {"name": "NVIDIA H200"}, "bandwidth_bytes_per_second": 3.9e12}
    path = tmp_path / "times.json"
    path.write_text(json.dumps(times | {"kernels": [], "variants": [variants]}))
    run(monkeypatch, "--report", path)
    text = capsys.readouterr().out
    assert text.startswith("H200, 132 GPU cores\n\nMemory: predicted 3943 GB/s, measured 3900.\n")
    assert re.search(r"\| slices-3x8 \| [\d.]+ \| 8.0 \| [\d.]+ \| predicted and measured \|", text)


def test_without_a_number_of_cores_it_is_the_whole_chip():
    assert cost_report.chip_of(report_of("Apple M4 Pro", None)) == CHIPS["M4 Pro"]


NO_TIMES: dict[str, object] = {
    "device": {"name": "Apple M1"},
    "bandwidth_bytes_per_second": None,
    "kernels": [],
}
NO_SECONDS = {"op": "gemv", "format": "Q1_0", "n_rows": 64, "k": 128, "seconds": {"lookup-1": 0}}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("report.md", "# nothing\n", "no block of JSON"),
        ("times.json", "[]", "neither a report nor its times: report is list, not an object"),
        ("times.json", '{"version": 2}', "report.commit is missing"),
        ("times.json", "{", "Expecting property name"),
        ("times.json", json.dumps(NO_TIMES), "times.variants is missing"),
        ("times.json", '{"kernels": [{"name": 1}]}', "times.bandwidth_bytes_per_second is missing"),
        ("times.json", json.dumps(NO_TIMES | {"variants": [NO_SECONDS]}), "0 was not measured"),
    ],
)
def test_a_file_that_is_no_report_is_refused(monkeypatch, tmp_path, capsys, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, "--report", path)
    assert caught.value.code == 1
    assert message in capsys.readouterr().err


def test_without_a_report_or_nvdisasm_it_says_so(monkeypatch, tmp_path, capsys):
    for arguments, message in [
        (("--report", tmp_path / "none.json"), "No such file"),
        (("--count", "--nvdisasm", tmp_path / "none"), f"no {tmp_path / 'none'} to run: it comes"),
    ]:
        with pytest.raises(SystemExit) as caught:
            run(monkeypatch, *arguments)
        assert caught.value.code == 1
        assert message in capsys.readouterr().err
