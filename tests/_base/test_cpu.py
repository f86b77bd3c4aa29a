from pathlib import Path

import pytest

from fewbits._base import cpu

X64 = "processor\t: 0\nmodel name\t: A CPU\nflags\t\t: fpu sse {}\n\nprocessor\t: 1\nflags\t\t: fpu\n"


@pytest.fixture
def cpuinfo(monkeypatch):
    """Sets what the system says of the CPU; None hides it."""
    caches = (cpu.cpu_flags, cpu.cpu_name)

    def say(text: str | None, machine: str = "x86_64") -> None:
        def read(self: Path, **_: object) -> str:
            if text is None:
                raise FileNotFoundError(self)
            return text

        monkeypatch.setattr(Path, "read_text", read)
        monkeypatch.setattr(cpu.platform, "machine", lambda: machine)
        for cached in caches:
            cached.cache_clear()

    yield say
    monkeypatch.undo()
    for cached in caches:
        cached.cache_clear()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("avx2", "avx2"),
        ("avx2 avx512f", "avx2"),
        ("avx2 avx_vnni", "vnni"),
        ("avx512f avx512_vnni avx2", "vnni"),
        ("", "avx2"),
    ],
)
def test_the_instruction_set_follows_the_flags(cpuinfo, flags, expected):
    cpuinfo(X64.format(flags))
    assert cpu.instruction_set() == expected
    assert set(cpu.cpu_flags()) == set(flags.split())


def test_a_flag_that_only_begins_alike_is_not_taken_for_it(cpuinfo):
    cpuinfo(X64.format("avx512_vnnix xavx_vnni"))
    assert cpu.cpu_flags() == ()


@pytest.mark.parametrize("machine", ["aarch64", "arm64", "ARM64"])
def test_arm_is_arm_whatever_the_flags(cpuinfo, machine):
    cpuinfo("Features\t: fp asimd asimddp i8mm\n", machine)
    assert cpu.instruction_set() == "arm"
    assert cpu.cpu_flags() == ("i8mm", "asimddp")


def test_a_system_that_hides_its_cpu_is_taken_for_the_careful_case(cpuinfo):
    cpuinfo(None)
    assert cpu.cpu_flags() == ()
    assert cpu.cpu_name() == "x86_64"
    assert cpu.instruction_set() == "avx2"


def test_the_name_is_the_first_processors(cpuinfo):
    cpuinfo(X64.format("avx2"))
    assert cpu.cpu_name() == "A CPU"


def test_there_is_at_least_one_core():
    assert cpu.cores() >= 1
