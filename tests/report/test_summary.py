"""Facts about the files, numbers, tables and pictures that a run leaves behind."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest

from scalebio_plugin.report.history import append_history, metrics, read_history
from scalebio_plugin.report.mixture_file import goals_of, mixture_document, read_mixture, summaries_of, write_mixture
from scalebio_plugin.report.summary import Cosine, SourceSummary, summarise, summarise_goals
from scalebio_plugin.report.tables import VERDICTS, goals_table, layers_line, progress_table, time_left, weights_table
from tests.report.histories import facts, old_document, old_record, record


def summary(weight, gap=0.0, gap_se=None, loss=1.0, interval=None, evidence=None):
    known = {"weight_average": weight, "loss": loss, "inner_loss": loss, "interval": interval, "evidence": evidence}
    return SourceSummary(weight=weight, gap=gap, gap_se=gap_se, **known)


class TestHistory:
    def test_what_is_appended_is_read_back(self, tmp_path):
        path, odd = tmp_path / "history.jsonl", "数学\u2028"
        history = [record(step, {odd: 0.25, "b": 0.75}, loss={odd: None, "b": 1.5}) for step in (1, 2)]
        for one in history:
            append_history(path, one)
        assert read_history(path) == history
        assert len(path.read_bytes().split(b"\n")) == 3

    @pytest.mark.parametrize(
        ("broken", "message"),
        [
            ('{"step": 2, "wei', "must be JSON, got: EOF"),
            ("[1, 2]", r"must be an object, got \[1, 2\]"),
            ('"step"', "must be an object, got 'step'"),
            ('{"weights": {}}', r"step is missing \(and \d+ more\)"),
            ("", "must be JSON, got: EOF"),
        ],
    )
    def test_a_broken_line_is_named(self, tmp_path, broken, message):
        path = tmp_path / "history.jsonl"
        first, last = (json.dumps(record(step, {"a": 1.0})) for step in (1, 3))
        path.write_text(f"{first}\n{broken}\n{last}\n")
        with pytest.raises(ValueError, match=rf"history\.jsonl, line 2:? {message}.*; delete the line"):
            read_history(path)

    @pytest.mark.parametrize(
        ("change", "key"),
        [
            ({"weights": {"b": 1.0}}, "weights"),
            ({"gap": {"a": 0.0, "b": 0.0}}, "gap"),
            ({"val_losses": {"other": 1.0}, "val_weights": {"other": 1.0}}, "val_losses"),
            ({"val_weights": {}}, "val_weights"),
            ({"goals": {"a": {"other": 0.5}}}, "goals"),
        ],
    )
    def test_lines_are_of_the_same_sources_and_sets(self, tmp_path, change, key):
        path = tmp_path / "history.jsonl"
        lines = [record(step, {"a": 1.0}) for step in (1, 2)]
        path.write_text("".join(json.dumps(line) + "\n" for line in (lines[0], lines[1] | change)))
        with pytest.raises(ValueError, match=rf"line 2: {key} must be of the same sources and sets as the first line"):
            read_history(path)


class TestMetrics:
    def test_every_source_has_its_weight_gap_evidence_and_loss_if_it_was_seen(self):
        names = {"a": 0.25, "b": 0.75}
        update = record(1, names, gap={"a": 0.5, "b": -0.5}, loss={"a": None, "b": 1.5}, evidence={"a": 1.5, "b": -0.2})
        assert metrics(update) == {
            **{"scalebio/val_loss": 2.0, "scalebio/loss/b": 1.5},
            **{"scalebio/weight/a": 0.25, "scalebio/gap/a": 0.5, "scalebio/evidence/a": 1.5},
            **{"scalebio/weight/b": 0.75, "scalebio/gap/b": -0.5, "scalebio/evidence/b": -0.2},
        }

    def test_of_several_validation_sets_each_has_its_weight_and_its_loss_if_it_was_seen(self):
        update = record(1, {"a": 1.0}) | {"val_losses": {"x": 3.0, "y": None}, "val_weights": {"x": 0.75, "y": 0.25}}
        shown = {key: value for key, value in metrics(update).items() if key.startswith("scalebio/val_")}
        assert shown == {
            **{"scalebio/val_loss": 2.0, "scalebio/val_loss/x": 3.0},
            **{"scalebio/val_weight/x": 0.75, "scalebio/val_weight/y": 0.25},
        }


class TestSummarise:
    def test_hand_computed(self):
        # 8 updates: the last quarter is updates 7 and 8; gaps, errors, intervals and evidence are the last update's.
        weights = [{"a": 0.5, "b": 0.5}] * 6 + [{"a": 0.6, "b": 0.4}, {"a": 0.8, "b": 0.2}]
        losses = [{"a": 9.0, "b": 9.0}] * 6 + [{"a": 2.0, "b": None}, {"a": 4.0, "b": None}]
        history = [
            record(step, *one, loss=loss, gap_se={"a": 99.0, "b": 99.0}, evidence={"a": 99.0, "b": 99.0})
            for step, (*one, loss) in enumerate(zip(weights, [{"a": 99.0, "b": 99.0}] * 8, losses, strict=True), 1)
        ]
        history[-1] |= {
            **{"gap": {"a": 7.0, "b": 8.0}, "gap_mean": {"a": -0.25, "b": 0.25}, "gap_se": {"a": 0.1, "b": 0.2}},
            **{"interval": {"a": [0.7, 0.9], "b": [0.1, 0.3]}, "evidence": {"a": -2.5, "b": 0.5}},
        }
        assert summarise(history, ["a", "b"]) == {
            "a": SourceSummary(0.8, pytest.approx(0.7), 3.0, 3.0, -0.25, 0.1, (0.7, 0.9), -2.5),
            "b": SourceSummary(0.2, pytest.approx(0.3), None, None, 0.25, 0.2, (0.1, 0.3), 0.5),
        }

    def test_one_update_has_no_standard_error(self):
        result = summarise([record(1, {"a": 0.25, "b": 0.75}, gap={"a": 4.0, "b": -4.0})], ["a", "b"])
        assert (result["a"].gap, result["b"].gap) == (4.0, -4.0)
        assert result["a"].gap_se is None
        assert result["a"].interval is None
        assert result["b"].weight_average == 0.75

    def test_an_empty_history_is_refused(self):
        with pytest.raises(ValueError, match="at least one mixture update"):
            summarise([], ["a"])


class TestWhatOlderVersionsWrote:
    def test_a_history_is_summarised_with_gaps_about_the_mixtures_average(self):
        history = [old_record(step, {"a": 0.25, "b": 0.75}, gap={"a": 4.0, "b": 0.0}) for step in range(1, 9)]
        result = summarise(history, ["a", "b"])
        assert result["a"] == SourceSummary(0.25, 0.25, 0.0, 0.0, 3.0, None)
        assert (result["b"].gap, result["b"].interval, result["b"].evidence) == (-1.0, None, None)

    def test_a_mixture_gives_what_it_has(self):
        new = {"a": summary(0.25, 0.5, 0.1, interval=(0.2, 0.3), evidence=3.0), "b": summary(0.75, -0.5, 0.1)}
        document = old_document(mixture_document(new, facts({"a": 1000, "b": 1000}), "converged"))
        old = summaries_of(json.loads(json.dumps(document)))
        assert old == {"b": summary(0.75, -0.5, 0.1), "a": summary(0.25, 0.5, 0.1)}

    @pytest.mark.parametrize(("gap", "told"), [(0.19, False), (-0.19, False), (0.21, True), (-0.21, True)])
    def test_two_standard_errors_tell_a_source_where_there_is_no_evidence(self, gap, told):
        assert summary(0.5, gap, 0.1).is_told_from_average is told


class TestTold:
    @pytest.mark.parametrize("evidence", [-1.01, 1.01, 30.0])
    def test_evidence_beyond_one_tells_a_source_whatever_its_recent_gap(self, evidence):
        assert summary(0.5, 0.0, 0.1, evidence=evidence).is_told_from_average

    @pytest.mark.parametrize("evidence", [0.0, -1.0, 1.0, 0.99])
    def test_evidence_within_one_does_not_whatever_its_recent_gap(self, evidence):
        assert not summary(0.5, 9.0, 0.1, evidence=evidence).is_told_from_average


def probed(*cosines):
    """A history of probes, and updates without one between them, of source a for set x."""
    plain = [record(step, {"a": 0.4, "b": 0.6}) for step in range(1, 2 * len(cosines) + 1)]
    probes = [{"a": {"x": of, "y": 0.5}, "b": {"x": -0.25, "y": None}} for of in cosines]
    return [one | {"goals": probes[i // 2] if i % 2 == 0 else None} for i, one in enumerate(plain)]


class TestGoals:
    def test_mean_and_standard_error_over_the_probes(self):
        goals = summarise_goals(probed(0.1, 0.2, None, 0.3, 0.6), ["a", "b"])
        assert goals["a"]["x"] == Cosine(pytest.approx(0.3), pytest.approx(np.std([0.1, 0.2, 0.3, 0.6], ddof=1) / 2), 4)
        assert goals["b"] == {"x": Cosine(-0.25, 0.0, 5), "y": Cosine(None, None, 0)}

    def test_below_three_probes_there_is_no_standard_error(self):
        assert summarise_goals(probed(0.1, 0.2), ["a", "b"])["a"]["x"] == Cosine(pytest.approx(0.15), None, 2)
        assert summarise_goals(probed(0.1, 0.2, 0.2), ["a", "b"])["a"]["x"].se is not None

    def test_without_probes_and_of_an_older_version_there_are_none(self):
        assert summarise_goals([record(1, {"a": 1.0})], ["a"]) is None
        assert summarise_goals([old_record(1, {"a": 1.0})], ["a"]) is None

    def test_they_are_read_back_from_the_mixture_in_the_order_of_the_sources(self, tmp_path):
        goals = summarise_goals(probed(0.1, 0.2, 0.3), ["a", "b"])
        summaries = {"a": summary(0.4), "b": summary(0.6)}
        document = mixture_document(summaries, facts({"a": 1000, "b": 1000}), None, goals)
        write_mixture(tmp_path / "mixture.json", document)
        read = goals_of(read_mixture(tmp_path / "mixture.json"))
        assert read == goals
        assert list(read) == ["b", "a"]
        assert document["goals"]["b"]["x"] == {"mean": -0.25, "se": 0.0, "probes": 3}
        assert goals_of(old_document(document)) is None

    def test_table(self):
        goals = summarise_goals(probed(0.1, 0.2, 0.3), ["a", "b"])
        assert goals_table(goals).splitlines() == [
            "helps               x               y",
            "a      +0.200 ± 0.058  +0.500 ± 0.000",
            "b      -0.250 ± 0.000               -",
            "cosines of gradients ± s.e.: above 0 a small step on the source lowers the loss of that validation set",
        ]
        assert goals_table(summarise_goals(probed(0.25), ["a", "b"])).splitlines()[1] == "a      +0.250  +0.500"
        assert goals_table(None) is None


class TestMixture:
    def test_document(self):
        summaries = {"a": summary(0.25), "b": summary(0.75, -0.1, 0.01, interval=(0.7, 0.8), evidence=-1.5)}
        document = mixture_document(summaries, facts({"a": 1000, "b": 1000}, estimator="symmetric"), "converged")
        assert list(document["weights"].items()) == [("b", 0.75), ("a", 0.25)]
        assert document["sources"]["b"] == {
            **{"weight": 0.75, "weight_average": 0.75, "tokens": 1000, "examples": 10},
            **{"loss": 1.0, "inner_loss": 1.0, "gap": -0.1, "gap_se": 0.01},
            **{"interval": (0.7, 0.8), "evidence": -1.5},
        }
        assert {key: value for key, value in document.items() if key not in ("weights", "sources")} == {
            **{
                "verdict": "converged",
                "told_at": None,
                "schema": 1,
                "goals": None,
                "penalty": 10.0,
                "estimator": "symmetric",
                "loss_unit": "token",
                "mixture_update": "adam",
            },
            **{"steps": 100, "updates": 50, "seed": 42, "versions": {"axolotl": "0.1"}},
            **{"fingerprint": {"base_model": "gpt2"}, "layer_steps": None, "drawn": None, "keep": "model"},
            "validation": None,
            "base_model": None,
            **{"config": None, "output_dir": None, "settings": None, "leaks": None, "shared_rows": None},
        }

    def test_weights_set_by_hand_are_taken_and_shown_as_nothing_that_was_learned(self, tmp_path):
        document = mixture_document({"a": summary(0.25), "b": summary(0.75)}, facts({"a": 1000, "b": 1000}), None)
        document["weights"] = {"a": 0.5, "b": 0.5}
        write_mixture(tmp_path / "mixture.json", document)
        assert read_mixture(tmp_path / "mixture.json")["weights"] == {"a": 0.5, "b": 0.5}
        with pytest.raises(
            ValueError, match="sources has other weights than weights has of [ab], [ab]: those were set by hand"
        ):
            read_mixture(tmp_path / "mixture.json", needs=("sources",))

    def test_float32_weights_sum_to_one(self):
        weights = np.random.default_rng(0).dirichlet(np.ones(999)).astype(np.float32) * np.float32(1.00001)
        summaries = {f"s{i}": summary(float(weight)) for i, weight in enumerate(weights)}
        document = mixture_document(summaries, facts(dict.fromkeys(summaries, 1000)), None)
        assert math.fsum(document["weights"].values()) == pytest.approx(1, abs=1e-14)
        assert all(document["sources"][name]["weight"] == weight for name, weight in document["weights"].items())

    def test_an_infinite_penalty_is_valid_json_and_read_back_as_older_versions_wrote_it_too(self, tmp_path):
        document = mixture_document({"a": summary(1.0)}, facts({"a": 1000}, penalty=math.inf), None)
        path = tmp_path / "mixture.json"
        write_mixture(path, document)
        assert json.loads(path.read_text(), parse_constant=pytest.fail)["penalty"] == "inf"
        assert read_mixture(path)["penalty"] == math.inf == document["penalty"]
        path.write_text(json.dumps(document))
        assert "Infinity" in path.read_text()
        assert read_mixture(path)["penalty"] == math.inf

    def test_what_is_written_is_read_back(self, tmp_path):
        summaries = {"é": summary(2 / 3, 0.5, 0.1, interval=(0.5, 0.7), evidence=-2.0), "a": summary(1 / 3, loss=None)}
        document = mixture_document(summaries, facts(dict.fromkeys(summaries, 1000)), "no signal", told_at={"é": 1840})
        write_mixture(tmp_path / "mixture.json", document)
        read = read_mixture(tmp_path / "mixture.json")
        assert read == json.loads(json.dumps(document))
        assert summaries_of(read) == summaries
        assert [path.name for path in tmp_path.iterdir()] == ["mixture.json"]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            *(
                ({"schema": 1, "weights": weights}, message)
                for weights, message in [
                    ({"a": 0.5, "b": 0.6}, r"weights must sum to 1 within 1e-6, got 1\.1; divide"),
                    ({"a": 0.5, "b": 0.499998}, r"weights must sum to 1 within 1e-6, got 0\.999998"),
                    ({"a": 1.5, "b": -0.5}, r"weights\['b'\] must be greater than or equal to 0, got -0\.5"),
                    ({"a": float("nan")}, r"weights\['a'\] must be a finite number, got nan"),
                    ({"a": "1"}, r"weights\['a'\] must be a valid number, got '1'"),
                    ({"a": True}, r"weights\['a'\] must be a valid number, got True"),
                    ({}, r"weights Dictionary should have at least 1 item .*, got \{\}"),
                ]
            ),
            ({"schema": 1}, r"weights is missing"),
            ({"schema": 2, "weights": {"a": 1.0}}, r"schema 2 is newer than what this version of scalebio reads"),
            ([0.5, 0.5], r"must be an object, got \[0\.5, 0\.5\]; give a mixture.json"),
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
        small = summary(0.2, gap=0.0123, gap_se=0.001, interval=(0.15, 0.2504), evidence=-1.2)
        large = summary(0.7, gap=-0.0031, gap_se=0.001, interval=(0.7, 0.7), evidence=0.9)
        rare = summary(0.1, gap=0.0001, loss=None)
        assert weights_table({"small": small, "large": large, "rare": rare}, "converged").splitlines() == [
            "source   weight    95% interval      gap    s.e.    loss",
            "large *  0.7000  0.700 to 0.700  -0.0031  0.0010  1.0000",
            "small    0.2000  0.150 to 0.250  +0.0123  0.0010  1.0000",
            "rare     0.1000               -  +0.0001       -       -",
            "* not told from the average of the sources by all updates together; gap and s.e. are of the late ones",
            "verdict: converged (the weights have settled)",
        ]

    def test_no_hint_where_every_gap_is_clear_and_no_verdict_where_there_is_none(self):
        table = weights_table({"a": summary(1.0, gap=0.5, gap_se=0.1, evidence=1.1)})
        assert "not told" not in table
        assert "verdict" not in table

    @pytest.mark.parametrize("verdict", VERDICTS)
    def test_every_verdict_is_said_in_words(self, verdict):
        last = weights_table({"a": summary(1.0)}, verdict).splitlines()[-1]
        assert last == f"verdict: {verdict} ({VERDICTS[verdict]})"

    @pytest.mark.parametrize(("step", "said"), [(287, "290"), (1840, "1,800"), (96_500, "96,000")])
    def test_how_much_longer_a_run_without_signal_would_have_to_learn(self, step, said):
        last = weights_table({"a\n": summary(1.0)}, "no signal", {"a\n": step}).splitlines()[-1]
        end = f"; a\\n would be told from noise at about step {said}, if its gap stays as it is"
        assert last == f"verdict: no signal ({VERDICTS['no signal']}){end}"

    @pytest.mark.parametrize("evidence", [0.0, None])
    def test_in_a_control_no_source_is_told_from_the_average(self, evidence):
        control = summary(0.5, gap=0.0, gap_se=0.0, evidence=evidence)
        assert weights_table({"a": control, "b": control}).count(" *") == 2

    def test_small_gaps_keep_their_digits(self):
        assert "+0.0000123" in weights_table({"a": summary(1.0, gap=1.23e-5)})

    def test_a_long_name_is_cut_in_the_middle(self):
        name = "organisation/" + "x" * 50 + "/train.jsonl"
        cut = weights_table({name: summary(1.0)}).splitlines()[1].split()[0]
        assert len(cut) == 40
        assert re.fullmatch(r"organisation/x*\.\.\.x*/train\.jsonl", cut)
        assert "y" * 40 in weights_table({"y" * 40: summary(1.0)})

    def test_progress_table(self):
        update = record(3, {"a": 0.25, "b": 0.75}, gap={"a": 0.03, "b": -0.01}, loss={"a": None, "b": 2.5})
        update |= {"interval": {"a": [0.2, 0.3], "b": [0.7, 0.8]}, "evidence": {"a": 1.456, "b": -0.5}}
        assert progress_table(update | {"gap": {"a": 9.0, "b": -9.0}}).splitlines() == [
            "source  weight    95% interval    loss      gap  evidence",
            "b       0.7500  0.700 to 0.800  2.5000  -0.0100     -0.50",
            "a       0.2500  0.200 to 0.300       -  +0.0300     +1.46",
            "so far: still moving; b leads with 0.750 (0.700 to 0.800), 1 of 2 sources are told apart",
        ]

    def test_progress_says_how_long_still(self):
        update = record(3, {"a": 0.25, "b": 0.75})
        said = progress_table(update, "40 learning steps left, about 2 min").splitlines()[-1]
        assert said == "so far: still moving; no source is told apart yet; 40 learning steps left, about 2 min"

    def test_nothing_is_said_of_an_interval_that_says_nothing(self):
        for interval in (None, {"a": [0.0, 1.0], "b": [0.0, 1.0]}):
            update = record(3, {"a": 0.25, "b": 0.75}, interval=interval, evidence={"a": 2.0, "b": -1.5})
            said = progress_table(update).splitlines()[-1]
            assert said == "so far: still moving; b leads with 0.750, 2 of 2 sources are told apart"

    @pytest.mark.parametrize(
        ("left", "said"),
        [
            ((0, 3.0), ""),
            ((1, 0.72), "1 learning step left, about 0.7 s"),
            ((30, None, " at most"), "30 learning steps left at most"),
            ((30, 41.2), "30 learning steps left, about 41 s"),
            ((30, 59.6), "30 learning steps left, about 1 min"),
            ((400, 3570.0), "400 learning steps left, about 1 h 00 min"),
            ((400, 7512.0, " at most"), "400 learning steps left at most, about 2 h 05 min"),
            ((4000, 273_600.0), "4000 learning steps left, about 3 d 4 h"),
        ],
    )
    def test_how_long_still(self, left, said):
        assert time_left(*left) == said

    def test_progress_table_of_a_rule_without_intervals(self):
        assert progress_table(record(3, {"a": 1.0})).splitlines()[1].split() == [
            "a",
            "1.0000",
            "-",
            "0.0000",
            "+0.00",
            "+0.00",
        ]

    def test_progress_table_of_many_sources(self):
        weights = {f"s{i:02d}": (i + 1) / 325 for i in range(25)}
        lines = progress_table(record(1, weights)).splitlines()
        assert [line.split()[0] for line in lines[1:21]] == [f"s{i:02d}" for i in range(24, 4, -1)]
        assert lines[21:] == [
            "... and 5 more (sum of weights 0.0462)",
            "so far: still moving; no source is told apart yet",
        ]


def test_the_blocks_that_lisa_moved_are_told():
    assert layers_line([20, 0, 40, 0]) == (
        "LISA moved 2 of 4 blocks, each for 20 to 40 optimiser steps; never drawn: 1, 3"
    )
    assert layers_line([5, 5]) == "LISA moved 2 of 2 blocks, each for 5 optimiser steps"
