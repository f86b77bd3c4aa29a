"""What hostile files once broke, each with the smallest file that did."""

from __future__ import annotations

import os

import pytest
from attacks.names import PHRASES, named
from attacks.parts import examples, honest, save


def test_a_name_of_100000_letters_makes_no_line_of_its_length(warm, tmp_path):
    model = save(tmp_path, named(PHRASES["long"]))
    listed = warm.run("inspect", "--all", model, folder=tmp_path)
    assert listed.code == 0
    assert max(map(len, listed.out.splitlines())) <= 2000


def test_a_refusal_that_names_100000_letters_keeps_its_slug_and_fits_a_screen(warm, tmp_path):
    proto = honest()
    proto.graph.node[1].input[0] = PHRASES["long"]
    refused = warm.run("inspect", save(tmp_path, proto), folder=tmp_path)
    assert refused.code == 4
    assert len(refused.err) < 2100
    assert refused.err.rstrip().endswith("[model-invalid]")


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "large"])
def test_a_plan_that_is_no_plain_file_of_fitting_size_is_refused_at_once(kind, warm, tmp_path):
    plan = tmp_path / "plan.json"
    if kind == "pipe":
        os.mkfifo(plan)
    elif kind == "device":
        plan.symlink_to("/dev/zero")
    elif kind == "folder":
        plan.mkdir()
    else:
        with plan.open("wb") as file:
            file.truncate(2**33)
    model, data = save(tmp_path, honest()), examples(tmp_path)
    ran = warm.run("quantize", model, "--data", data, "--plan", plan, "-o", tmp_path / "out", folder=tmp_path)
    assert (ran.code, ran.out) == (2, "")
    assert "[plan-invalid]" in ran.err
    assert not (tmp_path / "out").exists()
