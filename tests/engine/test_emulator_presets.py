"""What `--emulate` accepts, and what the emulator's library is told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetune.engine.emulator import DEFAULT_SCALE, PARAMETERS, PRESETS, EmulatedMachine, library_path, parse_emulated
from moetune.errors import ExitCode, MoetuneError


@pytest.mark.parametrize(
    ("name", "device", "host", "link"),
    [("desktop", 1008, 60, 25), ("small-card", 360, 45, 12), ("server", 360, 300, 12)],
)
def test_scaling_keeps_a_real_machines_ratios(name: str, device: float, host: float, link: float) -> None:
    """The library gets the preset's bandwidths, all three brought down by the same factor."""
    environment = parse_emulated(name).environment()
    assert float(environment["EMU_DEVICE_GBPS"]) == pytest.approx(device * DEFAULT_SCALE)
    assert float(environment["EMU_HOST_GBPS"]) == pytest.approx(host * DEFAULT_SCALE)
    assert float(environment["EMU_LINK_GBPS"]) == pytest.approx(link * DEFAULT_SCALE)


def test_memory_and_latencies_are_not_scaled() -> None:
    """Only bandwidths follow the scale."""
    environment = parse_emulated("server,scale=0.5,vram_mib=7").environment()
    assert environment["EMU_VRAM_MIB"] == "7"
    assert float(environment["EMU_LAUNCH_US"]) == 40
    assert float(environment["EMU_LINK_LATENCY_US"]) == 8


def test_parameters_override_the_preset_in_real_units() -> None:
    """A figure given by hand is the real machine's and is scaled like the preset's."""
    machine = parse_emulated("desktop, vram_mib=24, host_gbps=80, scale=0.01, threads=2")
    assert machine == EmulatedMachine(
        "desktop", vram_mib=24, device_gbps=1008, host_gbps=80, link_gbps=25, scale=0.01, threads=2
    )
    assert float(machine.environment()["EMU_HOST_GBPS"]) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("text", "blamed"),
    [
        ("", "''"),
        ("laptop", "'laptop'"),
        ("vram_mib=24", "'vram_mib=24'"),
        ("desktop,", "''"),
        ("desktop,ram=3", "'ram=3'"),
        ("desktop,name=mine", "'name=mine'"),
        ("desktop,vram_mib", "'vram_mib'"),
        ("desktop,vram_mib=1.5", "vram_mib=1.5"),
        ("desktop,vram_mib=0", "vram_mib"),
        ("desktop,scale=2", "scale"),
        ("desktop,scale=0", "scale"),
        ("desktop,link_gbps=-1", "link_gbps"),
        ("desktop,link_gbps=nan", "link_gbps"),
        ("desktop,threads=many", "threads=many"),
        ("desktop,scale=0.1,scale=0.2", "scale is set twice"),
    ],
)
def test_bad_text_is_a_usage_error_that_names_the_choices(text: str, blamed: str) -> None:
    """The cause quotes what is wrong; the remedy lists the machines and their parameters."""
    with pytest.raises(MoetuneError) as raised:
        parse_emulated(text)
    assert raised.value.code is ExitCode.USAGE
    assert blamed in raised.value.cause
    for word in (*PRESETS, *PARAMETERS):
        assert word in raised.value.remedy


@given(
    st.sampled_from(sorted(PRESETS)),
    st.integers(1, 2**20),
    st.floats(0, 1e5),
    st.floats(1e-6, 1),
)
def test_the_text_of_a_machine_makes_it_again(name: str, vram_mib: int, link_gbps: float, scale: float) -> None:
    """What is printed and saved can be given to --emulate."""
    machine = parse_emulated(f"{name},vram_mib={vram_mib},link_gbps={link_gbps!r},scale={scale!r}")
    assert parse_emulated(str(machine)) == machine


def test_a_preset_prints_as_its_name() -> None:
    """Nothing that was not changed is spelt out."""
    assert [str(machine) for machine in PRESETS.values()] == list(PRESETS)


def test_the_library_lies_beside_the_package() -> None:
    """The stem is a Python identifier, which the editable install needs to find it."""
    assert library_path().parent.name == "engine"
    assert library_path().stem.isidentifier()
