import math

import diffusers
import pytest
import torch

from tests.sampling.problem import run, smooth
from undertow.diffusion import RectifiedFlow, VarianceExploding, VariancePreserving
from undertow.errors import InvalidInput
from undertow.sampling import (
    ALIASES,
    SAMPLERS,
    NoiseSource,
    canonical_name,
    drive,
    euler,
    find_sampler,
    heun,
    start_sampler,
)

X = torch.ones(1, 3)
SIGMAS = [0.9, 0.4, 0.0]


def test_every_sampler_starts_by_name_on_each_of_its_paths():
    for name, entry in SAMPLERS.items():
        for path in entry.paths:
            end = run(name, X, SIGMAS, lambda x, sigma: x / 2, path=path())
            assert end.isfinite().all(), name


def test_an_algorithm_carries_its_entry():
    assert SAMPLERS["heun"] is heun.entry
    assert (heun.entry.function, heun.entry.evaluations) == (heun, 2)
    for name, entry in SAMPLERS.items():
        assert name == entry.function.__name__ or len(entry.paths) == 1, name


def test_options_reach_the_algorithm():
    still = start_sampler("euler_a", X, SIGMAS, path=VariancePreserving(), noise=NoiseSource([1]), eta=0.0)
    expected = drive(euler(X, SIGMAS), lambda x, sigma: x / 2)
    assert torch.equal(drive(still, lambda x, sigma: x / 2), expected)


def test_stochastic_says_whether_noise_is_needed():
    for name, entry in SAMPLERS.items():
        try:
            entry.function(X, SIGMAS)
        except InvalidInput:
            assert entry.stochastic, name
        else:
            assert not entry.stochastic, name


@pytest.mark.parametrize(
    ("wrong", "nearest"), [("eulr", "'euler'"), ("dpm++_2m", "'DPM++ 2M'"), ("Huen", "'heun'"), ("DDMI", "'ddim'")]
)
def test_unknown_names_are_refused_with_the_nearest(wrong: str, nearest: str):
    with pytest.raises(InvalidInput, match="did you mean") as refused:
        find_sampler(wrong)
    assert (refused.value.argument, refused.value.expected) == ("sampler", "a known sampler")
    question, _, listed = refused.value.remedy.partition("? ")
    assert nearest in question
    assert question.count(" or ") <= 2
    assert listed == "`undertow samplers` lists them"


def test_a_name_like_no_other_says_what_lists_them():
    with pytest.raises(
        InvalidInput, match="sampler is 'zzz', expected a known sampler; `undertow samplers` lists them"
    ):
        find_sampler("zzz")


@pytest.mark.parametrize("name", ["ddim_inverse", "tcd", "edm_euler"])
def test_samplers_of_another_path_are_refused(name: str):
    with pytest.raises(InvalidInput, match="one for RectifiedFlow; take ddpm, ddim, euler, euler_a, heun"):
        start_sampler(name, X, SIGMAS, path=RectifiedFlow(), noise=NoiseSource([1]))


@pytest.mark.parametrize("path", [VariancePreserving(), VarianceExploding()])
def test_flow_names_are_refused_off_the_flow_path(path):
    with pytest.raises(InvalidInput, match=f"one for {type(path).__name__}"):
        find_sampler("flow_heun", path)


def test_the_canonical_union_is_there():
    """requirements.md 5.1: what a complete engine should cover."""
    union = """euler euler_a euler_cfg_pp euler_a_cfg_pp heun heunpp2 dpm2 dpm2_a lms dpm_fast dpm_adaptive dpmpp_2s
    dpmpp_2s_a dpmpp_2s_a_cfg_pp dpmpp_sde dpmpp_2m dpmpp_2m_cfg_pp dpmpp_2m_sde dpmpp_2m_sde_heun dpmpp_3m dpmpp_3m_sde
    ddim ddpm pndm ipndm ipndm_v deis unipc unipc_bh2 lcm tcd restart res_multistep res_multistep_a res_multistep_cfg_pp
    gradient_estimation er_sde seeds_2 seeds_3 sa_solver sa_solver_pece edm_euler edm_dpmpp_2m flow_euler flow_heun
    ddim_inverse"""
    assert set(union.split()) <= SAMPLERS.keys()


COMFYUI = """euler euler_cfg_pp euler_ancestral euler_ancestral_cfg_pp heun heunpp2 dpm_2 dpm_2_ancestral lms dpm_fast
dpm_adaptive dpmpp_2s_ancestral dpmpp_2s_ancestral_cfg_pp dpmpp_sde dpmpp_sde_gpu dpmpp_2m dpmpp_2m_cfg_pp dpmpp_2m_sde
dpmpp_2m_sde_gpu dpmpp_2m_sde_heun dpmpp_2m_sde_heun_gpu dpmpp_3m_sde dpmpp_3m_sde_gpu ddpm lcm ipndm ipndm_v deis
res_multistep res_multistep_cfg_pp res_multistep_ancestral res_multistep_ancestral_cfg_pp gradient_estimation
gradient_estimation_cfg_pp er_sde seeds_2 seeds_3 sa_solver sa_solver_pece ddim uni_pc uni_pc_bh2"""
A1111 = (
    "DPM++ 2M,DPM++ SDE,DPM++ 2M SDE,DPM++ 2M SDE Heun,DPM++ 2S a,DPM++ 3M SDE,Euler a,Euler,LMS,Heun,DPM2,DPM2 a,"
    "DPM fast,DPM adaptive,Restart,HeunPP2,IPNDM,IPNDM_V,DEIS,DDIM,DDIM CFG++,PLMS,UniPC,LCM,DDPM"
)


def test_every_name_of_comfyui_and_a1111_is_an_alias():
    assert ALIASES["ComfyUI"].keys() == set(COMFYUI.split())
    assert ALIASES["A1111"].keys() == set(A1111.split(","))
    for names in ALIASES.values():
        for alias, name in names.items():
            assert canonical_name(alias) == (alias if alias in SAMPLERS else name)
            assert find_sampler(alias) is SAMPLERS[canonical_name(alias)]
    for alias, name in ALIASES["ComfyUI"].items():
        assert canonical_name(alias, "ComfyUI") == name


def test_an_alias_means_the_same_in_every_tool_and_hides_no_name_of_ours():
    """But for ComfyUI's algorithms of their own under a name of k-diffusion's."""
    meant: dict[str, str] = {}
    for names in ALIASES.values():
        for alias, name in names.items():
            assert meant.setdefault(alias, name) == name
            assert alias not in SAMPLERS or name in (alias, f"{alias}_comfyui")
    apart = {alias for alias, name in ALIASES["ComfyUI"].items() if alias in SAMPLERS and alias != name}
    assert apart == {"lms", "ipndm", "ipndm_v", "dpm_fast", "dpm_adaptive"}


def test_options_are_recorded_with_their_ranges():
    assert list(SAMPLERS["euler_a"].options) == ["eta", "s_noise"]
    assert SAMPLERS["dpm_adaptive"].options["order"].describe() == "a whole number from 2 to 3"
    assert SAMPLERS["tcd"].options["gamma"].describe() == "a finite number from 0 to 1"
    for entry in SAMPLERS.values():
        for option in entry.options.values():
            assert option.meaning
            assert option.default is None or option.low <= option.default <= option.high


# Default, lowest, highest value; whole numbers are given as such.
EVERYWHERE = {
    "eta": (1.0, 0.0, math.inf),
    "s_noise": (1.0, 0.0, math.inf),
    "s_churn": (0.0, 0.0, math.inf),
    "s_tmin": (0.0, 0.0, math.inf),
    "s_tmax": (math.inf, 0.0, math.inf),
    "gamma": (0.3, 0.0, 1.0),
    "ge_gamma": (2.0, 0.0, math.inf),
    "r": (0.5, 0.01, 1.0),
    "rtol": (0.05, 1e-8, math.inf),
    "atol": (0.0078, 1e-8, math.inf),
    "h_init": (0.05, 1e-4, math.inf),
    "pcoeff": (0.0, 0.0, 10.0),
    "icoeff": (1.0, 0.0, 10.0),
    "dcoeff": (0.0, 0.0, 10.0),
    "accept_safety": (0.81, 0.0, 1.0),
    "restart_min": (0.1, 0.0, math.inf),
    "restart_max": (2.0, 0.0, math.inf),
    "predictor_order": (3, 1, 4),
    "corrector_order": (4, 0, 4),
}
OF_ONE = {
    ("ddim", "eta"): (0.0, 0.0, math.inf),
    ("ddim", "stride"): (0, 0, math.inf),
    ("dpm_fast", "eta"): (0.0, 0.0, math.inf),
    ("dpm_fast_comfyui", "eta"): (0.0, 0.0, math.inf),
    **{(name, "eta"): (0.0, 0.0, math.inf) for name in ("dpm_adaptive", "dpm_adaptive_comfyui")},
    **{(name, "order"): (3, 2, 3) for name in ("dpm_adaptive", "dpm_adaptive_comfyui")},
    ("lms", "order"): (4, 1, 4),
    ("ipndm", "order"): (4, 1, 4),
    ("ipndm_v", "order"): (4, 1, 4),
    **{(f"{name}_comfyui", "order"): (4, 1, 4) for name in ("lms", "ipndm", "ipndm_v")},
    ("deis", "order"): (3, 1, 4),
    ("deis_log_rho", "order"): (2, 1, 3),
    ("unipc", "order"): (3, 1, 3),
    ("unipc_bh2", "order"): (3, 1, 3),
    ("er_sde", "order"): (3, 1, 3),
    **{(name, end): (None, 0.0, math.inf) for name in ("sa_solver", "sa_solver_pece") for end in ("s_tmin", "s_tmax")},
}


def test_every_option_has_its_published_default_and_range():
    """Those of the papers, k-diffusion and ComfyUI, which requests rely on."""
    for name, entry in SAMPLERS.items():
        for option, found in entry.options.items():
            expected = OF_ONE[name, option] if (name, option) in OF_ONE else EVERYWHERE[option]
            assert (found.default, found.low, found.high) == expected, (name, option)
            assert found.whole == isinstance(expected[1], int), (name, option)


@pytest.mark.parametrize("name", [name for name, entry in SAMPLERS.items() if entry.options])
def test_the_recorded_defaults_are_what_the_algorithm_takes(name: str):
    path = SAMPLERS[name].paths[0]()
    x, sigmas = torch.tensor([[0.3, -1.0, 2.0]], dtype=torch.float64), [0.95, 0.8, 0.7, 0.4, 0.35, 0.1]
    explicit = {option: record.default for option, record in SAMPLERS[name].options.items()}
    finite = {option: value for option, value in explicit.items() if value is not None and math.isfinite(value)}
    expected = run(name, x, sigmas, smooth, path=path)
    assert torch.equal(run(name, x, sigmas, smooth, path=path, **finite), expected)


def test_what_a_planner_reads_is_recorded():
    """ComfyUI's KSampler leaves out a level for four samplers (`DISCARD_PENULTIMATE_SIGMA_SAMPLERS`)."""
    named = {
        field: {name for name, entry in SAMPLERS.items() if getattr(entry, field)}
        for field in ("discards_penultimate", "guided", "inverse", "native_flow")
    }
    assert named["discards_penultimate"] == {"dpm2", "dpm2_a", "unipc", "unipc_bh2"}
    assert named["guided"] == {name for name in SAMPLERS if name.endswith("_cfg_pp")}
    assert named["inverse"] == {"ddim_inverse"}
    # Without noise in between, and with formulas in sigma (or, dpmpp_2m, tested on either path).
    plain = "euler heun heunpp2 dpm2 lms pndm ipndm ipndm_v gradient_estimation dpmpp_2m flow_euler flow_heun"
    # With noise in between, in formulas of their own for either path.
    comfyui = {"lms_comfyui", "ipndm_comfyui", "ipndm_v_comfyui", "dpm_fast_comfyui"}
    assert named["native_flow"] == {*plain.split(), "dpm2_a", "restart", "dpm_fast", *comfyui}


def test_orders_that_no_test_measures():
    names = ("ddpm", "restart", "dpm_adaptive", "er_sde", "lcm", "tcd", "edm_euler", "edm_dpmpp_2m")
    assert [SAMPLERS[name].order for name in names] == [1, 2, 3, 3, None, None, 1, 2]


def test_paths_are_those_that_the_samplers_are_made_for():
    def on(path: type) -> set[str]:
        return {name for name, entry in SAMPLERS.items() if path in entry.paths}

    assert SAMPLERS.keys() - on(RectifiedFlow) == {"ddim_inverse", "tcd", "edm_euler", "edm_dpmpp_2m"}
    assert SAMPLERS.keys() - on(VarianceExploding) == {"flow_euler", "flow_heun"}
    assert SAMPLERS.keys() - on(VariancePreserving) == {"flow_euler", "flow_heun", "edm_euler", "edm_dpmpp_2m"}


def test_diffusers_names_are_its_classes():
    for alias in ALIASES["diffusers"]:
        assert hasattr(diffusers, alias.partition("(")[0]), alias


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lms", {"order": 5}),
        ("lms", {"order": 2.5}),
        ("dpm_adaptive", {"order": 1}),
        ("tcd", {"gamma": 1.1}),
        ("dpmpp_sde", {"r": 0.0}),
        ("sa_solver", {"predictor_order": 0}),
        ("euler_a", {"eta": -0.1}),
        ("heun", {"s_churn": float("nan")}),
        ("unipc", {"order": True}),
    ],
)
def test_options_out_of_range_are_refused_before_any_evaluation(name: str, options: dict[str, float]):
    for path in (VariancePreserving(), RectifiedFlow()):
        if isinstance(path, SAMPLERS[name].paths):
            with pytest.raises(InvalidInput, match=f"{next(iter(options))} is .*for {name}"):
                start_sampler(name, X, SIGMAS, path=path, noise=NoiseSource([1]), **options)
