"""A shader with one barrier or bounds guard taken out does not get past the shader tests.

So the shaders have none that is superfluous, and the tests and the runner would notice if one of
them were missing.
"""

from __future__ import annotations

import shader_runs
from msl.testing import require_runner

require_runner()

import pytest  # noqa: E402
import test_shaders as matrices  # noqa: E402
import test_shaders_gemm as gemm  # noqa: E402
import test_shaders_heads as heads  # noqa: E402
from msl.build import Options, build  # noqa: E402
from msl.mutate import Mutant, guards, mutants  # noqa: E402

pytestmark = pytest.mark.slow

# For each family the tests that have to fail, each with the kernels that it runs.
TESTS = {
    "attention": [
        lambda order: heads.test_attention_matches_the_definition("f32", order, (4, 2, 64)),
        lambda order: heads.test_attention_past_max_seq_is_nan("f16", 40, 1),
        lambda order: heads.test_queries_that_share_the_caches_match_the_definition(
            "f32", order, 4, 2, 30
        ),
        lambda order: heads.test_parts_of_the_positions_are_put_together("f16", order, 3),
        lambda order: heads.test_what_comes_later_does_not_reach_a_token(float("inf")),
        lambda order: heads.test_tokens_of_a_batch_past_max_seq_are_nan_and_the_others_are_not(),
    ],
    "gemm": [
        lambda order: gemm.test_gemm_matches_the_definition_at_every_edge("f32", order, 2),
        lambda order: gemm.test_gate_up_swiglu_of_several_vectors_matches_the_definition(
            "f32", order, 2
        ),
    ],
    "gemv": [
        lambda order: matrices.test_gemv_matches_the_definition_at_every_edge("f32", order),
        lambda order: matrices.test_gemv_residual_adds_to_what_is_there("q2_g64", order),
        lambda order: matrices.test_gemv_of_many_rows_and_units("q2_g64", order),
        lambda order: matrices.test_gemv_of_many_rows_and_units("q1_g128", order),
        lambda order: matrices.test_gemv_of_a_norm_matches_the_definition(
            "q1_g128", order, 1, 1e-6
        ),
        lambda order: matrices.test_gemv_of_a_norm_matches_the_definition(
            "q1_g128", order, 1e30, 0
        ),
        lambda order: matrices.test_an_odd_scale_in_each_of_many_units_follows_ieee(
            "q1_g128", order
        ),
    ],
    "norm": [
        lambda order: heads.test_rmsnorm_matches_the_definition(order, 97),
        lambda order: heads.test_rmsnorm_of_numbers_whose_squares_leave_the_range(1e25, 0.0),
        lambda order: heads.test_residual_add_is_exact_for_any_grid(order, 65),
    ],
    "heads": [
        lambda order: heads.test_qk_norm_rope_matches_the_definition((5, 5, 30), order, 2),
        lambda order: heads.test_qk_norm_rope_past_the_last_position_does_nothing(6),
        lambda order: heads.test_kv_store_writes_its_layer_and_position_only(
            "f16", order, (4, 2, 64)
        ),
        lambda order: heads.test_kv_store_past_max_seq_writes_nothing("f32", 7),
        lambda order: heads.test_qkv_to_cache_is_norm_rope_and_store("f16", order, (4, 2, 64), 3),
    ],
    "swiglu": [
        lambda order: matrices.test_gate_up_swiglu_matches_the_definition("f32", order),
        lambda order: matrices.test_gate_up_swiglu_matches_the_definition("q1_g128", order),
        lambda order: matrices.test_gate_up_swiglu_matches_the_definition("q2_g64", order),
        lambda order: matrices.test_gate_up_swiglu_of_a_norm_matches_the_definition(
            "q1_g128", order, 1, 1e-6
        ),
        lambda order: matrices.test_gate_up_swiglu_of_a_norm_matches_the_definition(
            "q1_g128", order, 1e30, 1e-6
        ),
        lambda order: matrices.test_gate_up_swiglu_with_odd_scales_follows_ieee("q1_g128", order),
    ],
    "token": [
        lambda order: matrices.test_advance_takes_the_first_of_the_largest_logits(order, 96),
        lambda order: matrices.test_advance_writes_no_token_where_it_must_not(),
        lambda order: matrices.test_argmax_of_several_vectors(order, 96),
        lambda order: matrices.test_embed_of_what_is_not_there_is_nan([0, 9], 1, 2),
        lambda order: matrices.test_embed_of_what_is_not_there_is_nan([0, 1], 2, 2),
    ],
}
KERNELS = {
    "attention": ["attention_f16", "attention_f32", "attention_combine"],
    "heads": ["qk_norm_rope", "kv_store_f16", "kv_store_f32", "qkv_to_cache_f16"],
    "gemm": ["gemm_f32", "fused_gate_up_swiglu_gemm_f32"],
    "gemv": [
        "gemv_f32",
        "gemv_q1_g128",
        "gemv_q2_g64",
        "gemv_q2_g64_residual",
        "gemv_q1_g128_norm",
    ],
    "norm": ["rmsnorm", "residual_add"],
    "swiglu": [
        f"fused_gate_up_swiglu_{name}" for name in ("f32", "q1_g128", "q2_g64", "q1_g128_norm")
    ],
    "token": ["advance", "argmax", "embed_q1_g128"],
}
CASES = [
    (family.name, mutant) for family in shader_runs.FAMILIES for mutant in mutants(family.source)
]


def failure(monkeypatch, family: str, source: str) -> str | None:
    """Run the family's tests on this source, and give what the first that fails says."""

    def compile_source(name: str, mode: str, constants: tuple[str, ...]) -> dict[str, str]:
        assert name == family
        parts = [(c.partition(":")[0], *c.partition(":")[2].split("=")) for c in constants]
        values = tuple((int(index), kind, value) for index, kind, value in parts)
        options = Options(mode=mode, values=values, kernels=tuple(KERNELS[family]))
        built = build(source, f"{family}.metal", options)
        return {"runtime": str(built.runtime), "library": str(built.library)}

    monkeypatch.setattr(shader_runs, "compile_family", compile_source)
    try:
        for test in TESTS[family]:
            for order in ("random", "forward", "reverse"):
                test(order)
    except (AssertionError, shader_runs.RunError) as error:
        return str(error) or "wrong result"
    return None


@pytest.mark.parametrize("family", shader_runs.FAMILIES, ids=lambda family: family.name)
def test_the_shader_as_it_is_passes(monkeypatch, family):
    assert failure(monkeypatch, family.name, family.source) is None


@pytest.mark.parametrize(
    ("family", "mutant"), CASES, ids=[f"{family}-{mutant.name}" for family, mutant in CASES]
)
def test_a_shader_with_less_is_found_out(monkeypatch, family: str, mutant: Mutant):
    assert failure(monkeypatch, family, mutant.source) is not None


def test_there_are_mutants_of_both_kinds():
    kinds = [mutant.kind for _, mutant in CASES]
    assert kinds.count("barrier") >= 4
    assert kinds.count("guard") >= 8


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("if (row >= args.n_rows) return;", ["if (false) return;"]),
        ("if (i < n)\n  x = 1;", ["if (true)\n  x = 1;"]),
        ("if (a && i < n) x = 1;", ["if (a && true) x = 1;"]),
        ("if (h >= n || p >= m.n_rows) { return; }", [
            "if (false || p >= m.n_rows) { return; }",
            "if (h >= n || false) { return; }",
        ]),
        ("y = i < args.n ? x[i] : 0;", ["y = true ? x[i] : 0;"]),
        ("if (a < b) x = 1;", []),
    ],
)  # fmt: skip
def test_a_guard_is_taken_out(source, expected):
    assert [mutant.source for mutant in guards(source)] == expected
