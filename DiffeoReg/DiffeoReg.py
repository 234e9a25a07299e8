"""Diffeomorphic registration in 3D Slicer: the classes Slicer asks for; the work is in DiffeoRegPanel."""

import sys
from pathlib import Path

import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)

PAGES = "https://github.com/DiffeoReg/SlicerDiffeoReg/blob/main/Resources/docs"


class DiffeoReg(ScriptedLoadableModule):
    """What Slicer shows about the module."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("Diffeomorphic Registration (DiffeoReg)")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Registration")]
        self.parent.dependencies = []
        self.parent.contributors = ["The DiffeoReg contributors"]
        self.parent.helpText = _(
            "Brings a moving volume onto a fixed one by a smooth transform that can be inverted, and reports "
            "how well it fits. Choose the volumes and a model, press Apply. "
            'See the <a href="{pages}/tutorial.md">tutorial</a>, which model to '
            '<a href="{pages}/choose-a-model.md">choose</a>, '
            '<a href="{pages}/troubleshooting.md">troubleshooting</a> and '
            '<a href="{pages}/README.md">all pages</a>. '
            "Research software, not a medical device."
        ).format(pages=PAGES)
        self.parent.acknowledgementText = _(
            "DiffeoReg implements published methods; the report of every run names those it used. "
            'Please <a href="{pages}/methods.md#papers">cite</a> them.'
        ).format(pages=PAGES)
        _find_engine()
        slicer.app.connect("startupCompleted()", _register_samples)


def _find_engine():
    """Installed, both packages lie beside this file; in a checkout the engine is one folder up."""
    for folder in (Path(__file__).parent, Path(__file__).parents[1]):
        if (folder / "DiffeoRegLib").is_dir() and str(folder) not in sys.path:
            sys.path.append(str(folder))


def _register_samples():
    from DiffeoRegPanel.samples import register_samples

    register_samples()


class DiffeoRegWidget(ScriptedLoadableModuleWidget):
    """The panel; everything it does is in DiffeoRegPanel.widget."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        self.logic = None
        self.panel = None

    def setup(self):
        """Build the panel."""
        ScriptedLoadableModuleWidget.setup(self)
        from DiffeoRegPanel.widget import Panel

        self.logic = DiffeoRegLogic()
        panel = Panel(self, self.logic)
        panel.setup()
        self.panel = panel

    def enter(self):
        """The user opens the module."""
        self.panel.enter()

    def exit(self):
        """The user goes to another module."""
        self.panel.exit()

    def cleanup(self):
        """The application closes, or the module is reloaded."""
        if self.panel is not None:
            self.panel.cleanup()
            self.logic.close()


class DiffeoRegLogic(ScriptedLoadableModuleLogic):
    """Registration without the panel; usable from the Python console. No dialogs."""

    def __init__(self):
        ScriptedLoadableModuleLogic.__init__(self)
        self._runner = None

    @property
    def runner(self):
        """The worker process, started when it is first needed."""
        if self._runner is None:
            from DiffeoRegPanel.machine import Machine
            from DiffeoRegPanel.runner import Runner

            machine = Machine()
            self._runner = Runner(
                machine.worker_command(),
                temporary=machine.temporary_folder,
                keep_warm_seconds=machine.keep_warm_seconds,
            )
        return self._runner

    def close(self):
        """Stop the worker process and remove its files; the next run starts a new one."""
        if self._runner is not None:
            self._runner.close()
            self._runner = None

    def getParameterNode(self):
        """The module's parameters in the scene."""
        from DiffeoRegPanel.parameters import DiffeoRegParameterNode

        return DiffeoRegParameterNode(super().getParameterNode())

    def start(self, request):
        """Begin a run and return at once; see DiffeoRegPanel.registration.Registration."""
        from DiffeoRegPanel.machine import Machine
        from DiffeoRegPanel.registration import Registration
        from DiffeoRegPanel.weights import with_weights

        return Registration(with_weights(request, Machine), self.runner)

    def startGroup(self, request):
        """Begin the registration of a group and return at once; see DiffeoRegPanel.group."""
        from DiffeoRegPanel.group import GroupRegistration
        from DiffeoRegPanel.machine import Machine
        from DiffeoRegPanel.weights import with_weights

        return GroupRegistration(with_weights(request, Machine), self.runner)

    def acceptLicence(self, licence):
        """Remember on this computer that you have read and accept a licence of weights, by its name."""
        from DiffeoRegPanel.machine import Machine

        Machine().accept_licence(licence)

    def path(self, way):
        """The way from the given position to the result, from what `result.way` holds.

        See DiffeoRegPanel.path.Path.
        """
        from DiffeoRegPanel.path import Path

        return Path(way, self.runner)

    def pathSequence(self, way, positions=None):
        """The way as a sequence of transforms to play: (sequence, browser); way: a result's.

        positions: how many; None = one for every time step of velocities that change in time, else 11.
        """
        from DiffeoRegPanel import console, path

        return path.sequence_along(way, self.runner, positions, console.keep_application_alive())

    def shoot(self, momentum, time=1.0):
        """The transform of a momentum or of velocities, made again from their numbers alone, and its inverse.

        time: from 0, the images as given, to 1, registered.
        """
        from DiffeoRegPanel import console, path

        return path.shot_again(momentum, self.runner, time, console.keep_application_alive())

    def register(
        self,
        fixedNode,
        movingNode,
        method="svf",
        steps="auto",
        preset="general",
        effort="balanced",
        *,
        initialTransform=None,
        fixedMask=None,
        movingMask=None,
        excludeFixedMask=False,
        excludeMovingMask=False,
        fixedGuidance=None,
        movingGuidance=None,
        fixedGuidancePoints=None,
        movingGuidancePoints=None,
        fixedEvaluation=None,
        movingEvaluation=None,
        fixedEvaluationPoints=None,
        movingEvaluationPoints=None,
        fixedPathology=None,
        movingPathology=None,
        pathologyEdge=None,
        regionSegmentation=None,
        stiffness=None,
        rest="rigid-like",
        movingSegmentation=None,
        movingMarkups=None,
        movingModels=None,
        outputTransform=None,
        inverseTransform=None,
        outputVolume=None,
        wantInverse=True,
        wantVolume=True,
        wantVelocity=True,
        wantJacobian=False,
        wantRegulariser=False,
        storage="half",
        settings=None,
        waitForCompletion=True,
        progressCallback=None,
    ):
        """Register movingNode to fixedNode and return the nodes and numbers of the result.

        Masks, guidance, evaluation and regions: a segmentation or label map node, or (node, segment name).
        fixedPathology, movingPathology: what only that volume shows; of several classes those that count as
        (node, [segment names or labels]).  pathologyEdge: width over which the marks fade, mm; None = 4.
        regionSegmentation: regions of movingNode.  stiffness: of each, by segment name: soft, normal, stiff,
        rigid-like, or the shares of the kernels.  rest: of all other places.
        wantVelocity: keep the velocity, the velocities of all steps or the momentum, for `path`.
        wantRegulariser: width of a geodesic's regulariser as a volume at its start and one at its end.
        movingSegmentation, movingMarkups, movingModels: a node or several, carried to the fixed volume.
        settings: further fields of DiffeoRegLib.settings.Settings, by name.
        A trained model under a licence of its own runs once that is accepted, see `acceptLicence`.
        waitForCompletion: False returns the run itself; poll it until it is finished.
        progressCallback: called with every event (kind, fraction, message) while waiting.
        Returns a DiffeoRegPanel.registration.RegistrationResult.
        Raises InputError and its relatives with one sentence on what to do.
        """
        given = {key: value for key, value in locals().items() if key not in _NOT_FOR_REQUEST}
        from DiffeoRegPanel import console

        chosen = console.settings_of(method, preset, effort, steps, settings)
        registration = self.start(console.request_from_call(fixedNode, movingNode, chosen, **given))
        if not waitForCompletion:
            return registration
        return console.wait_for(registration, progressCallback, console.keep_application_alive())

    def registerGroup(
        self,
        images,
        toFrame=None,
        preset="general",
        effort="balanced",
        *,
        method="svf",
        masks=None,
        excludeMasks=False,
        markedFrame=0,
        segmentations=None,
        markups=None,
        leaveOut=False,
        wantMean=True,
        wantUncertainty=True,
        storage="half",
        settings=None,
        waitForCompletion=True,
        progressCallback=None,
    ):
        """Register the frames of a sequence, or several volumes, to one of them or to the middle of all.

        images: a sequence node, its browser, or a list of volume nodes.  toFrame: the one that stays, from 0;
        None = the middle of all.  method: svf, or one of groups with trained weights, whose file
        settings={"weights": file} names.  masks: where images count; a segmentation, a label map or (node,
        segment name) for all, a sequence of these, or a list with one (or None) for each.
        segmentations, markups: a node or several that lie on frame `markedFrame`, carried to all frames.
        leaveOut: go on without an image that has no use.
        settings: further fields of DiffeoRegLib.settings.Settings, by name.
        waitForCompletion, progressCallback: as for `register`.
        Returns a DiffeoRegPanel.group.GroupResult.
        Raises InputError and its relatives with one sentence on what to do.
        """
        from DiffeoRegPanel import console
        from DiffeoRegPanel.group import GroupRequest

        registration = self.startGroup(
            GroupRequest(
                images=images,
                settings=console.settings_of(method, preset, effort, "auto", settings),
                fixed=toFrame,
                masks=console.masks_from(masks, excludeMasks),
                carried=console.several(segmentations) + console.several(markups),
                marked=markedFrame,
                want_mean=wantMean,
                want_uncertainty=wantUncertainty,
                leave_out=leaveOut,
                storage=storage,
            )
        )
        if not waitForCompletion:
            return registration
        return console.wait_for(registration, progressCallback, console.keep_application_alive())


_NOT_FOR_REQUEST = {
    *("self", "fixedNode", "movingNode", "method", "steps", "preset", "effort", "settings"),
    *("waitForCompletion", "progressCallback"),
}


class DiffeoRegTest(ScriptedLoadableModuleTest):
    """What Slicer's own test run does; the whole test suite is in Testing/."""

    def setUp(self):
        """Start from an empty scene."""
        slicer.mrmlScene.Clear()

    def runTest(self):
        """Run everything here."""
        self.setUp()
        self.test_bad_input_is_explained()
        self.setUp()
        self.test_registers_where_torch_is_installed()

    def test_bad_input_is_explained(self):
        """Runs without torch."""
        from DiffeoRegLib.errors import InputError

        with self.assertRaises(InputError):
            DiffeoRegLogic().register(None, None)

    def test_registers_where_torch_is_installed(self):
        """Two shifted blobs come together, and the transform in the scene shows it."""
        from DiffeoRegPanel.install import Setup

        state = Setup().state()
        if not state.ok:
            self.delayDisplay(f"Not run: {state.sentence}")
            return
        from DiffeoRegPanel.samples import blob_pair

        logic = DiffeoRegLogic()
        try:
            result = logic.register(*blob_pair(), effort="fast")
        finally:
            logic.close()
        self.assertTrue(result.selfCheck.ok, result.selfCheck.sentence)
        self.assertEqual(result.report["folds"]["folded_percent"], 0.0)
