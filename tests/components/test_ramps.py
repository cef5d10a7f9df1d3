"""Ramps against their formulas, at the ends and between."""

import math

import pytest

from semiseg.components import ConstantWeight, LinearRamp, SigmoidRamp


def test_sigmoid_ramp_rises_from_e_to_the_minus_five():
    ramp = SigmoidRamp(1000, peak=2.0, length=0.5)
    assert ramp(0) == pytest.approx(2 * math.exp(-5))
    assert ramp(250) == pytest.approx(2 * math.exp(-5 * 0.25))
    assert ramp(500) == ramp(999) == 2.0


def test_sigmoid_ramp_is_that_of_ssl4mis_by_default():
    ramp = SigmoidRamp(30_000)
    for step in (0, 150, 7_500, 29_999):
        theirs = 0.1 * math.exp(-5 * (1 - (step / 150) / 200) ** 2)  # they count by 150 steps, over 200
        assert ramp(step) == pytest.approx(theirs)


def test_linear_ramp_is_proportional_to_the_step():
    ramp = LinearRamp(200)
    assert [ramp(step) for step in (0, 50, 200, 300)] == [0.0, 1.25, 5.0, 5.0]
    assert LinearRamp(200, length=0.25)(25) == 2.5


def test_no_rise_is_the_peak_at_once():
    assert LinearRamp(100, length=0)(0) == 5.0
    assert SigmoidRamp(100, length=0)(0) == 0.1
    assert ConstantWeight(100, peak=3.0)(7) == 3.0
