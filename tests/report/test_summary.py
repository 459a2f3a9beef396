"""Facts about the files, numbers, tables and pictures that a run leaves behind."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest

from scalebio_plugin.report.history import append_history, read_history
from scalebio_plugin.report.mixture_file import mixture_document, read_mixture, write_mixture
from scalebio_plugin.report.summary import SourceSummary, batch_means_error, summarise
from scalebio_plugin.report.tables import layers_line, progress_table, weights_table
from tests.report.histories import drifting_history, facts, record


def summary(weight, gap=0.0, gap_se=None, loss=1.0):
    return SourceSummary(weight=weight, weight_average=weight, loss=loss, inner_loss=loss, gap=gap, gap_se=gap_se)


class TestHistory:
    def test_what_is_appended_is_read_back(self, tmp_path):
        path, odd = tmp_path / "history.jsonl", "数学\u2028"
        history = [record(step, {odd: 0.25, "b": 0.75}, loss={odd: None, "b": 1.5}) for step in (1, 2)]
        for one in history:
            append_history(path, one)
        assert read_history(path) == history
        assert len(path.read_bytes().split(b"\n")) == 3

    @pytest.mark.parametrize("broken", ['{"step": 2, "wei', "[1, 2]", '"step"', '{"weights": {}}', ""])
    def test_a_broken_line_is_named(self, tmp_path, broken):
        path = tmp_path / "history.jsonl"
        path.write_text(f'{{"step": 1}}\n{broken}\n{{"step": 3}}\n')
        with pytest.raises(ValueError, match=r"history\.jsonl, line 2: .*JSON object.*delete the line"):
            read_history(path)


class TestSummarise:
    def test_hand_computed(self):
        # 8 updates: the last quarter is updates 7 and 8, the last half 5 to 8.
        weights = [{"a": 0.5, "b": 0.5}] * 6 + [{"a": 0.6, "b": 0.4}, {"a": 0.8, "b": 0.2}]
        gaps = [{"a": 99.0, "b": 0.0}] * 4 + [
            {"a": 1.0, "b": 3.0},  # average 2.0: centred -1.0, 1.0
            {"a": 3.0, "b": 1.0},  # average 2.0: centred  1.0, -1.0
            {"a": 0.0, "b": 5.0},  # average 2.0: centred -2.0, 3.0
            {"a": 5.0, "b": 0.0},  # average 4.0: centred  1.0, -4.0
        ]
        losses = [{"a": 9.0, "b": 9.0}] * 6 + [{"a": 2.0, "b": None}, {"a": 4.0, "b": None}]
        history = [record(i + 1, *one) for i, one in enumerate(zip(weights, gaps, losses, strict=True))]
        result = summarise(history, ["a", "b"])
        assert list(result) == ["a", "b"]
        # Two batches of two: means 0 and -0.5 for a, 0 and -0.5 for b; variance 0.125, times 2, over 4, root.
        expected = {
            "a": SourceSummary(0.8, pytest.approx(0.7), 3.0, 3.0, pytest.approx(-0.25), pytest.approx(0.25)),
            "b": SourceSummary(0.2, pytest.approx(0.3), None, None, pytest.approx(-0.25), pytest.approx(0.25)),
        }
        assert result == expected

    def test_what_all_sources_share_has_no_part_in_the_gap(self):
        history, names = drifting_history(4, 20)
        shifted = [one | {"gap": {name: gap + 5.0 for name, gap in one["gap"].items()}} for one in history]
        expected, got = summarise(history, names), summarise(shifted, names)
        for name in names:
            assert got[name].gap == pytest.approx(expected[name].gap, abs=1e-12)
            assert got[name].gap_se == pytest.approx(expected[name].gap_se, abs=1e-12)

    def test_one_update_has_no_standard_error(self):
        result = summarise([record(1, {"a": 0.25, "b": 0.75}, gap={"a": 4.0, "b": 0.0})], ["a", "b"])
        assert (result["a"].gap, result["b"].gap) == (3.0, -1.0)
        assert result["a"].gap_se is None
        assert result["b"].weight_average == 0.75

    def test_an_empty_history_is_refused(self):
        with pytest.raises(ValueError, match="at least one mixture update"):
            summarise([], ["a"])


class TestBatchMeansError:
    @pytest.mark.parametrize("count", [0, 3])
    def test_none_below_four_values(self, count):
        assert batch_means_error(np.ones(count)) is None

    def test_values_left_over_at_the_start_stay_out(self):
        # 21 values: ten batches of two; whatever comes first changes nothing.
        values = np.arange(21.0)
        other = np.concatenate([[1e9], values[1:]])
        means = values[1:].reshape(10, 2).mean(axis=1)
        assert batch_means_error(values) == pytest.approx(math.sqrt(2 * means.var(ddof=1) / 21))
        assert batch_means_error(other) == batch_means_error(values)

    @pytest.mark.parametrize("correlation", [0.8, 0.9])
    def test_nearer_the_truth_than_the_naive_error_on_autocorrelated_noise(self, correlation):
        random = np.random.default_rng(1)
        length, runs = 400, 300
        series = np.zeros((length, runs))
        series[0] = random.normal(size=runs) / math.sqrt(1 - correlation**2)
        for n in range(1, length):
            series[n] = correlation * series[n - 1] + random.normal(size=runs)
        truth = series.mean(axis=0).std()
        naive = np.median(series.std(axis=0, ddof=1) / math.sqrt(length))
        ours = np.median([batch_means_error(column) for column in series.T])
        assert abs(ours / truth - 1) < 0.2
        assert naive / truth < 0.4

    def test_equals_the_naive_error_on_average_for_independent_noise(self):
        series = np.random.default_rng(2).normal(size=(500, 100))
        variance = np.mean([batch_means_error(row) ** 2 for row in series])
        assert variance == pytest.approx(1 / 100, rel=0.1)


class TestMixture:
    def test_document(self):
        summaries = {"a": summary(0.25), "b": summary(0.75, gap=-0.1, gap_se=0.01)}
        document = mixture_document(summaries, facts({"a": 1000, "b": 1000}, estimator="symmetric"))
        assert list(document["weights"].items()) == [("b", 0.75), ("a", 0.25)]
        assert document["sources"]["b"] == {
            **{"weight": 0.75, "weight_average": 0.75, "tokens": 1000, "examples": 10},
            **{"loss": 1.0, "inner_loss": 1.0, "gap": -0.1, "gap_se": 0.01},
        }
        assert {key: value for key, value in document.items() if key not in ("weights", "sources")} == {
            **{"schema": 1, "penalty": 10.0, "estimator": "symmetric", "loss_unit": "token", "mixture_update": "adam"},
            **{"steps": 100, "updates": 50, "seed": 42, "versions": {"axolotl": "0.1"}},
            **{"fingerprint": {"base_model": "gpt2"}, "layer_steps": None, "drawn": None, "keep": "model"},
        }

    def test_float32_weights_sum_to_one(self):
        weights = np.random.default_rng(0).dirichlet(np.ones(999)).astype(np.float32) * np.float32(1.00001)
        summaries = {f"s{i}": summary(float(weight)) for i, weight in enumerate(weights)}
        document = mixture_document(summaries, facts(dict.fromkeys(summaries, 1000)))
        assert math.fsum(document["weights"].values()) == pytest.approx(1, abs=1e-14)
        assert all(document["sources"][name]["weight"] == weight for name, weight in document["weights"].items())

    def test_what_is_written_is_read_back(self, tmp_path):
        summaries = {"a": summary(1 / 3, loss=None), "é": summary(2 / 3)}
        document = mixture_document(summaries, facts(dict.fromkeys(summaries, 1000)))
        write_mixture(tmp_path / "mixture.json", document)
        assert read_mixture(tmp_path / "mixture.json") == document
        assert [path.name for path in tmp_path.iterdir()] == ["mixture.json"]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            *(
                ({"schema": 1, "weights": weights}, message)
                for weights, message in [
                    ({"a": 0.5, "b": 0.6}, r"weights must sum to 1 within 1e-6, got 1\.1; divide"),
                    ({"a": 0.5, "b": 0.499998}, r"weights must sum to 1 within 1e-6, got 0\.999998"),
                    ({"a": 1.5, "b": -0.5}, r"weights\['b'\] must be a finite number >= 0, got -0\.5"),
                    ({"a": float("nan")}, r"weights\['a'\] must be a finite number >= 0, got nan"),
                    ({"a": "1"}, r"weights\['a'\] must be a finite number >= 0, got '1'"),
                    ({"a": True}, r"weights\['a'\] must be a finite number >= 0, got True"),
                    ({}, r"weights must map source names to numbers, got \{\}"),
                ]
            ),
            ({"schema": 1}, r"weights must map source names to numbers, got None"),
            ({"schema": 2, "weights": {"a": 1.0}}, r"schema must be 1, got 2"),
            ([0.5, 0.5], r"schema must be 1, got None"),
        ],
    )
    def test_a_bad_mixture_is_refused_with_file_rule_and_value(self, tmp_path, content, message):
        path = tmp_path / "mixture.json"
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"mixture\.json: " + message):
            read_mixture(path)
        path.unlink()
        with pytest.raises(ValueError, match=message):
            write_mixture(path, content)
        assert not path.exists()

    def test_a_sum_within_the_tolerance_is_accepted(self, tmp_path):
        write_mixture(tmp_path / "mixture.json", {"schema": 1, "weights": {"a": 0.5, "b": 0.4999995}})
        assert read_mixture(tmp_path / "mixture.json")["weights"] == {"a": 0.5, "b": 0.4999995}

    def test_a_file_that_is_not_json_is_refused(self, tmp_path):
        (tmp_path / "mixture.json").write_text("a: 0.5")
        with pytest.raises(ValueError, match=r"mixture\.json must be JSON"):
            read_mixture(tmp_path / "mixture.json")


class TestTables:
    def test_final_table(self):
        small, large = summary(0.2, gap=0.0123, gap_se=0.001), summary(0.7, gap=-0.0031, gap_se=0.002)
        rare = summary(0.1, gap=0.0001, loss=None)
        assert weights_table({"small": small, "large": large, "rare": rare}).splitlines() == [
            "source   weight      gap    s.e.    loss",
            "large *  0.7000  -0.0031  0.0020  1.0000",
            "small    0.2000  +0.0123  0.0010  1.0000",
            "rare     0.1000  +0.0001       -       -",
            "* not distinguishable from the average: |gap| is within 2 s.e.",
        ]

    def test_no_hint_where_every_gap_is_clear(self):
        assert "distinguishable" not in weights_table({"a": summary(1.0, gap=0.5, gap_se=0.1)})

    def test_in_a_control_no_source_is_told_from_the_average(self):
        table = weights_table({"a": summary(0.5, gap=0.0, gap_se=0.0), "b": summary(0.5, gap=0.0, gap_se=0.0)})
        assert table.count(" *") == 2

    def test_small_gaps_keep_their_digits(self):
        assert "+0.0000123" in weights_table({"a": summary(1.0, gap=1.23e-5)})

    def test_a_long_name_is_cut_in_the_middle(self):
        name = "organisation/" + "x" * 50 + "/train.jsonl"
        cut = weights_table({name: summary(1.0)}).splitlines()[1].split()[0]
        assert len(cut) == 40
        assert re.fullmatch(r"organisation/x*\.\.\.x*/train\.jsonl", cut)
        assert "y" * 40 in weights_table({"y" * 40: summary(1.0)})

    def test_progress_table(self):
        table = progress_table(record(3, {"a": 0.25, "b": 0.75}, gap={"a": 0.04, "b": 0.0}, loss={"a": None, "b": 2.5}))
        assert table.splitlines() == [
            "source  weight    loss      gap",
            "b       0.7500  2.5000  -0.0100",
            "a       0.2500       -  +0.0300",
        ]

    def test_progress_table_of_many_sources(self):
        weights = {f"s{i:02d}": (i + 1) / 325 for i in range(25)}
        lines = progress_table(record(1, weights)).splitlines()
        assert [line.split()[0] for line in lines[1:21]] == [f"s{i:02d}" for i in range(24, 4, -1)]
        assert lines[21:] == ["... and 5 more (sum of weights 0.0462)"]


def test_the_blocks_that_lisa_moved_are_told():
    assert layers_line([20, 0, 40, 0]) == (
        "LISA moved 2 of 4 blocks, each for 20 to 40 optimiser steps; never drawn: 1, 3"
    )
    assert layers_line([5, 5]) == "LISA moved 2 of 2 blocks, each for 5 optimiser steps"
