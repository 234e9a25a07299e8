"""The time steps of the panel: range, default and meaning come from the model's card; nothing else is run."""

from __future__ import annotations

from typing import Any

import pytest

from DiffeoRegLib.catalog import CARDS
from DiffeoRegLib.errors import SettingsError
from DiffeoRegLib.settings import Settings
from Testing.slicer import panel_cases as cases
from Testing.slicer.test_panel_controls import choose, panel  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("bench")


def steps_of(panel: Any) -> tuple[bool, int]:  # noqa: F811
    flow = panel.parameters.flow
    return flow.autoSteps, flow.steps


def shown(panel: Any) -> tuple[int, int, int, bool, bool]:  # noqa: F811
    """Range and value of the number, whether it and the tick can be changed."""
    spin = panel.ui.stepsSpin
    return spin.minimum, spin.maximum, spin.value, spin.enabled, panel.ui.stepsAuto.enabled


def test_the_range_is_that_of_the_card(panel: Any) -> None:  # noqa: F811
    choose(panel.ui.methodCombo, "varying")
    panel.ui.stepsAuto.setChecked(False)
    assert shown(panel) == (1, 32, 8, True, True)
    panel.ui.stepsSpin.setValue(500)
    assert steps_of(panel) == (False, 32)
    choose(panel.ui.methodCombo, "svf")
    assert shown(panel)[:2] == CARDS["svf"].steps_range


def test_a_model_with_a_number_of_its_own_has_that_and_one_without_is_automatic(panel: Any) -> None:  # noqa: F811
    assert steps_of(panel)[0]
    choose(panel.ui.methodCombo, "counted")
    assert steps_of(panel) == (False, 4)
    assert shown(panel) == (2, 16, 4, True, True)
    assert panel.request().settings.steps == 4
    choose(panel.ui.methodCombo, "svf")
    assert steps_of(panel)[0]
    assert panel.request().settings.steps == "auto"


def test_what_the_user_chose_stays_where_the_next_model_takes_it(panel: Any) -> None:  # noqa: F811
    cases.choose_pair(panel)
    panel.ui.stepsAuto.setChecked(False)
    panel.ui.stepsSpin.setValue(12)
    choose(panel.ui.methodCombo, "counted")
    assert steps_of(panel) == (False, 12)
    assert "became" not in panel.ui.statusLabel.text
    choose(panel.ui.methodCombo, "affine")  # has no steps
    choose(panel.ui.methodCombo, "varying")
    assert steps_of(panel) == (False, 12)


def test_a_number_the_next_model_does_not_take_becomes_the_nearest_and_that_is_said(panel: Any) -> None:  # noqa: F811
    cases.choose_pair(panel)
    panel.ui.stepsAuto.setChecked(False)
    panel.ui.stepsSpin.setValue(100)
    choose(panel.ui.methodCombo, "varying")
    assert steps_of(panel) == (False, 32)
    assert panel.ui.statusLabel.text == "100 time steps became 32: 'Method varying' takes 1 to 32."
    assert panel.ui.applyButton.enabled
    panel.ui.regularitySlider.value = 2.0
    assert panel.ui.statusLabel.text == "Ready."
    panel.parameters.flow.steps = 1000  # from the Python console
    assert steps_of(panel) == (False, 32)
    assert "1000 time steps became 32" in panel.ui.statusLabel.text
    assert panel.request().settings.steps == 32


def test_a_scene_with_a_number_out_of_range_is_shown_with_one_that_is_in_it(
    bench: Any, monkeypatch: Any
) -> None:
    cases.add_cards(monkeypatch)
    parameters = cases.FakeLogic().getParameterNode()
    parameters.model.method = "varying"
    parameters.flow.autoSteps, parameters.flow.steps = False, 700
    opened = cases.make_panel()
    assert steps_of(opened) == (False, 32)
    assert opened.ui.statusLabel.text == (
        "700 time steps became 32: 'Method varying' takes 1 to 32. Choose a fixed and a moving volume."
    )
    cases.choose_pair(opened)
    assert opened.ui.statusLabel.text == "Ready."
    opened.cleanup()
    parameters.flow.steps = 17
    opened = cases.make_panel()
    assert steps_of(opened) == (False, 17)
    assert opened.ui.stepsSpin.value == 17
    opened.cleanup()


def test_one_possible_number_cannot_be_changed(panel: Any) -> None:  # noqa: F811
    choose(panel.ui.methodCombo, "single")
    assert shown(panel) == (12, 12, 12, False, False)
    assert panel.request().settings.steps == 12
    assert "only 12" in panel.ui.stepsSpin.toolTip
    choose(panel.ui.methodCombo, "varying")
    assert panel.ui.stepsAuto.enabled


@pytest.mark.parametrize(
    ("method", "said", "automatic"),
    [
        ("varying", "8 velocities, one for each of the 8 time steps it was trained with", "trained with"),
        ("counted", "one velocity for each time step it was trained with", "trained with"),
        ("lddmm", "the geodesic is shot", "the motion asks for"),
        ("svf", "rounded up to 1, 2, 4, 8", "leaves no fold"),
    ],
)
def test_what_steps_mean_is_said_for_every_model(panel: Any, method: str, said: str, automatic: str) -> None:  # noqa: F811
    choose(panel.ui.methodCombo, method)
    low, high = CARDS[method].steps_range
    for name in ("stepsRow", "stepsRowLabel", "stepsSpin"):
        assert said in getattr(panel.ui, name).toolTip
        assert f"{low} to {high}" in getattr(panel.ui, name).toolTip
    assert automatic in panel.ui.stepsAuto.toolTip


def test_without_the_panel_a_number_out_of_range_is_refused_in_one_sentence(bench: Any) -> None:
    from DiffeoRegPanel.checks import check_request
    from DiffeoRegPanel.parameters import settings_from
    from DiffeoRegPanel.request import Request
    from DiffeoRegPanel.script import script_for

    parameters = cases.FakeLogic().getParameterNode()
    parameters.flow.autoSteps, parameters.flow.steps = False, 500
    request = Request(cases.add_volume("CT", 1), cases.add_volume("MR", 2), Settings(steps=500))
    for act in (
        lambda: settings_from(parameters),
        lambda: check_request(request),
        lambda: script_for(request),
    ):
        with pytest.raises(SettingsError, match=r"'svf' takes 1 to 128 time steps, or 'auto', not 500\."):
            act()
    parameters.model.method = "affine"
    assert settings_from(parameters).steps == "auto"


def test_trained_networks_are_offered_for_the_initial_alignment(panel: Any) -> None:  # noqa: F811
    cases.choose_pair(panel)
    assert panel.ui.initCombo.findText("Affine network, brain T1 MR") >= 0
    choose(panel.ui.initCombo, "network:affine-brain-t1")
    settings = panel.request().settings
    assert (settings.method, settings.init_network) == ("svf", "affine-brain-t1")
    licence = "CC-BY-NC-4.0"
    assert f"'Affine network, brain T1 MR' are under {licence}" in panel.ui.statusLabel.text
    assert not panel.ui.applyButton.enabled
    panel.ui.licenceCheck.click()
    assert panel.services.machine.accepted == {licence}
    assert panel.ui.applyButton.enabled
    assert panel.ui.licenceCheck.isHidden()
    choose(panel.ui.initCombo, "auto")
    assert panel.setup_box.aligner is None
