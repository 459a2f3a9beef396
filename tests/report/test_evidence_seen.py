"""What the page says that the verdict rests on."""

from __future__ import annotations

import re

import pytest

from scalebio_plugin.report.evidence_seen import rests_on
from scalebio_plugin.report.summary import SourceSummary
from tests.report.test_page import ODD, Page


def of(gap: float = 0.0, error: float | None = None, evidence: float | None = None) -> SourceSummary:
    return SourceSummary(0.1, 0.1, 1.0, 1.0, gap, error, None, evidence)


def test_the_strongest_evidence_is_named_first() -> None:
    text = Page(rests_on({"weak": of(evidence=0.4), ODD: of(evidence=1.5), "strong": of(evidence=-4.0)})).text
    assert f"Evidence of strong -4.00, {ODD} +1.50; 2 of 3 sources are beyond ±1, where its gaps" in text


def test_of_many_sources_told_apart_five_are_named() -> None:
    text = Page(rests_on({f"s{i}": of(evidence=9.0 - i) for i in range(7)})).text
    assert "Evidence of s0 +9.00, s1 +8.00, s2 +7.00, s3 +6.00, s4 +5.00 and 2 more; 7 of 7" in text


def test_without_evidence_it_says_so_and_how_much_there_is() -> None:
    text = Page(rests_on({"a": of(evidence=0.3), "b": of(evidence=-0.7)})).text
    assert "No evidence yet, the most of it b -0.70, a +0.30; 0 of 2 sources" in text


def test_what_an_older_version_learned_has_its_gaps_alone() -> None:
    page = Page(rests_on({"a": of(0.02, 0.004), "b": of(-0.01, 0.004)}))
    assert "vidence" not in page.text
    assert page.rows == [["a", "", "+0.0200", "± 0.0080"], ["b", "", "-0.0100", "± 0.0080"]]


@pytest.mark.parametrize("summaries", [{"a": of()}, {"a": of(0.0, 0.0), "b": of(0.0, 0.0)}], ids=["early", "control"])
def test_of_nothing_it_says_nothing(summaries: dict[str, SourceSummary]) -> None:
    assert rests_on(summaries) == ""


def test_a_whisker_spans_two_errors_and_the_line_is_in_the_middle() -> None:
    markup = rests_on({"clear": of(0.02, 0.004), "not": of(0.004, 0.004), "below": of(-0.02, 0.002)})
    (clear, unclear, below) = re.findall(
        r'axis(| gains| loses)"><i style="left: ([\d.]+)%; width: ([\d.]+)%"></i><b style="left: ([\d.]+)%', markup
    )
    scale = 48 / 0.028  # percent a nat: the farthest end is 2% from the edge
    assert clear[0] == " loses"
    assert [float(at) for at in clear[1:]] == pytest.approx(
        [50 + 0.012 * scale, 0.016 * scale, 50 + 0.02 * scale], abs=0.01
    )
    assert (unclear[0], below[0]) == ("", " gains")
    assert float(unclear[1]) < 50 < float(unclear[1]) + float(unclear[2])
