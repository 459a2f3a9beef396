"""Facts about the picture that a run leaves behind."""

from __future__ import annotations

import warnings
from io import BytesIO

import numpy as np
import pytest
from matplotlib.image import imread

from scalebio_plugin.report.picture import PALETTE, drawn_mixture, running_mean
from scalebio_plugin.report.picture import _spread as spread
from tests.report.histories import NEW_IN_A_RECORD, drifting_history, record


def colours_in(png):
    """The palette colours that the picture holds, exactly as drawn."""
    red, green, blue = np.moveaxis(np.round(imread(BytesIO(png))[..., :3] * 255).astype(int), -1, 0)
    pixels = np.unique(red << 16 | green << 8 | blue)
    return {hexa for hexa in PALETTE if int(hexa[1:], 16) in pixels}


class TestPicture:
    @pytest.mark.parametrize(
        ("sources", "coloured"),
        [
            (1, 1),
            pytest.param(2, 2, marks=pytest.mark.slow),
            (10, 10),
            (11, 8),
            pytest.param(40, 8, marks=pytest.mark.slow),
        ],
    )
    def test_up_to_ten_sources_are_in_colour_and_of_more_the_top_eight(self, sources, coloured):
        picture = drawn_mixture(drifting_history(sources, 30)[0], drifting_history(sources, 1)[1])
        assert colours_in(picture) == set(PALETTE[:coloured])

    def test_one_update_is_visible(self):
        history, names = drifting_history(2, 1)
        history[0]["loss"] = dict.fromkeys(names)
        assert colours_in(drawn_mixture(history, names)) == set(PALETTE[:2])

    def test_no_update_gives_empty_axes_with_a_note(self):
        drawn = drawn_mixture([], ["a", "b"])
        picture = imread(BytesIO(drawn))
        assert picture.shape[0] > 1000
        assert picture[..., :3].std() > 0.01
        assert colours_in(drawn) == set()

    def test_awkward_names_and_a_diverged_run(self):
        nan = float("nan")
        history = [
            record(step, {"$a_b$c$": 0.5, "x" * 200: 0.5}, loss={"$a_b$c$": nan, "x" * 200: nan}) | {"val_loss": nan}
            for step in (1, 2, 3)
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            drawn = drawn_mixture(history, list(history[0]["weights"]))
        assert imread(BytesIO(drawn)).shape[1] < 2500

    def test_intervals_are_drawn_of_the_largest_three_where_they_say_anything(self):
        history, names = drifting_history(5, 30)

        def picture(of=None, to=None):
            """With the interval of the source `of`, or of all, put to another."""
            changed = []
            for update in history:
                interval = {name: to if of in (None, name) else ends for name, ends in update["interval"].items()}
                changed.append(update | {"interval": interval if to else update["interval"]})
            return drawn_mixture(changed, names)

        drawn = picture()
        by_weight = sorted(names, key=lambda name: -history[-1]["weights"][name])
        for rank, name in enumerate(by_weight):
            assert (picture(name, [0.0, 0.3]) != drawn) is (rank < 3)
        assert picture(None, [0.0, 1.0]) != drawn

    def test_what_is_drawn_of_the_weights_is_within_the_axes(self, monkeypatch):
        history, names = drifting_history(3, 30)
        wide = [update | {"interval": dict.fromkeys(names, [0.0, 0.95])} for update in history]
        assert max(max(update["weights"].values()) for update in wide) < 0.9
        highest = []
        monkeypatch.setattr(
            "scalebio_plugin.report.picture._label_ends", lambda axes, ends: highest.append(axes.get_ylim()[1])
        )
        drawn_mixture(wide, names)
        assert highest[0] >= 0.95

    def test_a_run_without_intervals_or_evidence_has_the_picture_of_older_versions(self):
        history, names = drifting_history(3, 30)
        without = [update | {"interval": None} for update in history]
        old = [{key: value for key, value in update.items() if key not in NEW_IN_A_RECORD} for update in history]
        # One of no width is no certainty: nothing was evident yet.
        no_width = [
            update | {"interval": {name: [weight, weight] for name, weight in update["weights"].items()}}
            for update in history
        ]
        assert drawn_mixture(old, names) == drawn_mixture(without, names) == drawn_mixture(no_width, names)

    def test_running_mean_is_centred_and_skips_what_is_missing(self):
        values = np.array([[1.0, np.nan], [2.0, np.nan], [6.0, np.nan], [np.nan, 5.0]])
        expected = np.array([[1.5, np.nan], [3.0, np.nan], [4.0, 5.0], [6.0, 5.0]])
        np.testing.assert_allclose(running_mean(values, 3), expected)

    @pytest.mark.parametrize("heights", [[], [0.5], [0.5, 0.5, 0.5], [0.0, 0.0, 0.01, 1.0, 0.99], [0.9, 0.1, 0.5]])
    def test_labels_keep_their_order_their_distance_and_the_frame(self, heights):
        free = spread(np.array(heights), 0.1)
        order = np.argsort(heights, kind="stable")
        assert np.all(np.diff(free[order]) >= 0.1 - 1e-12)
        assert np.all((free >= 0) & (free <= 1 + 1e-12))

    def test_labels_that_do_not_collide_stay_and_those_that_do_part_evenly(self):
        np.testing.assert_allclose(spread(np.array([0.9, 0.1, 0.5]), 0.1), [0.9, 0.1, 0.5])
        np.testing.assert_allclose(spread(np.array([0.5, 0.9, 0.5]), 0.1), [0.45, 0.9, 0.55])
