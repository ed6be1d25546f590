"""The report: what it finds, that its numbers are the rows', and that its bytes stay."""

import re
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from reported import CONDITIONS, best_of, many, measured, row

from trimtab.bench.errors import BenchError
from trimtab.bench.records import BASE, Distance, Gain, Interval, Row
from trimtab.bench.report import write_report
from trimtab.bench.report.findings import Span, climb, findings, latency_of, leads, listed, reward_at, turns, union
from trimtab.bench.report.labels import Box, Line, place, spread
from trimtab.bench.report.numbers import between, counted, decimals, digits, fixed, percent, signed, times
from trimtab.bench.report.view import look

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
PLOTS = ("reward-latency", "reward-tokens", "winrate-kl", "gold-proxy", "throughput")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(many(), folder)
    return folder


class Cells(HTMLParser):
    """The tables of a page as rows of cells, and the ids of all elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.ids: list[str] = []
        self._rows: list[list[str]] = []
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th"):
            self._rows[-1].append("")
        self._inside = tag if tag in ("td", "th", "caption") else self._inside

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th", "caption"):
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "caption":
            self._rows = self.tables[data] = []
        elif self._inside:
            self._rows[-1][-1] += data


def of_markdown(text: str) -> dict[str, list[list[str]]]:
    """The tables of a Markdown report by caption, as HTML's parser gives them."""
    found: dict[str, list[list[str]]] = {}
    for caption, table in re.findall(r"^\*\*(.+)\*\*\n\n((?:\|.*\n?)+)", text, flags=re.MULTILINE):
        lines = [re.split(r"(?<!\\) \| ", line.removeprefix("| ").removesuffix(" |")) for line in table.splitlines()]
        plain = [
            [re.sub(r"\\(.)", r"\1", cell.removeprefix("**").removesuffix("**")) for cell in line] for line in lines
        ]
        found[re.sub(r"\\(.)", r"\1", caption)] = [plain[0], *plain[2:]]
    return found


def without_plots(page: str) -> str:
    return re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)


def said(rows: Sequence[Row]) -> str:
    return "\n".join(findings(look(rows)))


BASELINE = measured(BASE, 0.52, 1000, gold=0.31, level="base")
CURVE = [BASELINE, best_of(2, 0.8, 1200), best_of(4, 1.0, 1600), best_of(16, 1.2, 4000)]


# Files


def test_the_same_rows_give_the_same_bytes(written: Path, tmp_path: Path) -> None:
    again = write_report(many(), tmp_path)
    names = {"report.md", "report.html", *(f"{name}.{kind}" for name in PLOTS for kind in ("svg", "png"))}
    assert {file.name for file in again} == names
    for file in again:
        assert file.read_bytes() == (written / file.name).read_bytes(), file.name


def test_plots_are_well_formed_and_hold_no_date_and_no_version(written: Path) -> None:
    for name in PLOTS:
        text = (written / f"{name}.svg").read_text()
        ElementTree.fromstring(text)
        assert not re.search(r"<dc:date>|matplotlib", re.sub(r"<defs>.*", "", text, flags=re.DOTALL))
        assert f"]({name}.svg)" in (written / "report.md").read_text()


def test_the_page_needs_nothing_else_and_says_what_its_plots_show(written: Path) -> None:
    page = (written / "report.html").read_text()
    assert not re.findall(r'<script|<link|<img|(?:src|href)="(?!#)[^"]*"|@import|url\((?!#)', page)
    ids = Cells(page).ids
    assert len(ids) == len(set(ids)), "plots share ids"
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', page)) <= set(ids)
    for name in PLOTS:
        assert f'aria-labelledby="{name}-title {name}-desc"' in page
    assert page.count("<caption>") == page.count("<table>") > 5
    assert "#1c1c1e" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL), (
        "ink that a dark theme cannot turn"
    )


def test_both_formats_say_the_same(written: Path) -> None:
    page = Cells((written / "report.html").read_text()).tables
    assert of_markdown((written / "report.md").read_text()) == page


def test_the_committed_reports_are_what_their_rows_give(tmp_path: Path) -> None:
    """But for drawings, which differ between versions of matplotlib."""
    folders = [file.parent for file in sorted(RESULTS.glob("*/rows.jsonl"))]
    assert folders, "a report is committed with its rows: benchmarks/results/NAME/rows.jsonl"
    for folder in folders:
        rows = [Row.model_validate_json(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
        write_report(rows, tmp_path)
        assert (tmp_path / "report.md").read_text() == (folder / "report.md").read_text(), folder
        new, old = ((each / "report.html").read_text() for each in (tmp_path, folder))
        assert without_plots(new) == without_plots(old), folder


def test_without_matplotlib_the_error_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from trimtab.bench.errors import BenchError\n"
        "try:\n    import trimtab.bench.report\n"
        "except BenchError as error:\n    print(error)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "pip install 'trimtab[bench]'" in told.stdout, told.stderr


def test_no_rows_and_no_place_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="no rows"):
        write_report([], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchError, match="cannot write"):
        write_report([BASELINE], tmp_path / "file")


# Numbers


def number(cell: str) -> float:
    """The first number of a cell."""
    found = re.search(r"[+\N{MINUS SIGN}]?[\d,]+(\.\d+)?", cell)
    assert found is not None, cell
    return float(found.group().replace("\N{MINUS SIGN}", "-").replace(",", "").replace("+", ""))


def test_each_number_of_the_tables_is_the_rows(written: Path) -> None:
    tables = of_markdown((written / "report.md").read_text())
    rows = {each.setting: each for each in many() if each.concurrency == 8}

    def check(caption: str, column: str, value: Any, *, near: float) -> None:
        head, *lines = tables[caption]
        place = head.index(column)
        assert len(lines) == 25
        for line in lines:
            expected = value(rows[line[0]])
            if expected is None:
                assert line[place] == "\N{EN DASH}"
            else:
                assert number(line[place]) == pytest.approx(expected, abs=near * max(1.0, abs(expected))), line[0]

    def over(value: Any) -> Any:
        return lambda row: None if row.setting == BASE else value(row)

    main = "Reward and latency; the Pareto front in bold"
    check(main, "reward", lambda row: row.reward.mean, near=0.005)
    check(main, "gain [95 %]", over(lambda row: row.reward_gain.mean), near=0.005)
    check(main, "better on", over(lambda row: 100 * row.reward_gain.improved), near=0.501)
    check(main, "gold (vader) gain [95 %]", over(lambda row: row.gold_gain.mean), near=0.0005)
    check(main, "win rate", lambda row: row.win_rate and 100 * row.win_rate.mean, near=0.501)
    check(main, "KL, nats", lambda row: row.kl and row.kl.mean, near=0.005)
    check(main, "p50 ms", lambda row: row.e2e_ms.p50, near=0.005)
    check(main, "p95 ms", lambda row: row.e2e_ms.p95, near=0.005)
    check("Speed and memory", "first text, p50 ms", lambda row: row.ttft_ms.p50, near=0.005)
    check("Speed and memory", "tokens/s", lambda row: row.tokens_per_second, near=0.005)
    check("Speed and memory", "peak MiB", lambda row: row.peak_memory_mib, near=0.001)
    check("What an answer costs", "tokens", lambda row: row.spent_total, near=0.005)
    check("What an answer costs", "over base", lambda row: row.spent_total / 48, near=0.005)
    check("How varied the texts are", "distinct-1", lambda row: row.distinct.get(1), near=0.005)
    bounds = {line[0]: line[8] for line in tables[main]}
    assert bounds["cbs"] == "\N{LESS-THAN OR EQUAL TO} 3.30"
    assert bounds["fudge"] == "6.00"


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (digits(0.0), "0"),
        (digits(0.01234), "0.0123"),
        (digits(1.2), "1.20"),
        (digits(9.996), "10.0"),
        (digits(99.96), "100"),
        (digits(1243.0), "1,240"),
        (digits(-12.34), "\N{MINUS SIGN}12.3"),
        (digits(None), "\N{EN DASH}"),
        (fixed(-0.001, 2), "0.00"),
        (fixed(1234.5, 1), "1,234.5"),
        (signed(0.004, 2), "0.00"),
        (signed(0.25, 2), "+0.25"),
        (signed(-0.25, 2), "\N{MINUS SIGN}0.25"),
        (between(-0.1, 0.2, 1), "[\N{MINUS SIGN}0.1, +0.2]"),
        (percent(0.625), "62 %"),
        (percent(None), "\N{EN DASH}"),
        (times(98.0, 48.0), "2.04\N{MULTIPLICATION SIGN}"),
        (times(98.0, 0.0), "\N{EN DASH}"),
        (times(None, 48.0), "\N{EN DASH}"),
        (counted(1, "prompt"), "1 prompt"),
        (counted(40, "prompt"), "40 prompts"),
    ],
)
def test_numbers_are_written(shown: str, text: str) -> None:
    assert shown == text


@pytest.mark.parametrize(
    ("halves", "places"), [([], 2), ([0.0], 2), ([0.11, 0.13, 7.0], 2), ([0.013], 3), ([12.0], 0), ([1e-9], 5)]
)
def test_decimals_follow_the_uncertainty(halves: list[float], places: int) -> None:
    assert decimals(halves) == places


# Findings


def test_a_setting_above_the_curve_with_its_interval_dominates_it() -> None:
    view = look([*CURVE, measured("strong", 1.1, 1400, half=0.05)])
    (lead,) = leads(view)
    assert lead.curve == pytest.approx(0.9)
    # Best-of-n has 1.1 halfway from n=4 to n=16, and 1.05 a quarter of the way.
    assert lead.span == pytest.approx((1400, 2800))
    assert lead.certain == pytest.approx((1400, 2200))
    assert "over 1,400 to 2,800 ms some setting gives more reward than best-of-n" in said(view.rows)
    assert "above best-of-n too, taken as exact, over 1,400 to 2,200 ms: strong." in said(view.rows)


def test_a_lead_of_the_mean_alone_is_called_so() -> None:
    rows = [*CURVE, measured("weak", 0.95, 1400, half=0.3)]
    (lead,) = leads(look(rows))
    assert lead.certain is None
    assert "For none of them is the low end of the paired interval above best-of-n" in said(rows)


def test_where_nothing_dominates_the_report_says_so() -> None:
    rows = [*CURVE, measured("below", 0.85, 1400), measured("slow", 2.0, 9000)]
    assert leads(look(rows)) == []
    assert "Nothing dominates best-of-n" in said(rows)
    assert "not compared with best-of-n: slow." in said(rows)


def test_a_faster_setting_is_held_against_the_fastest_n() -> None:
    (lead,) = leads(look([*CURVE, measured("fast", 0.6, 500, half=0.01)]))
    assert lead.curve == 0.52
    assert lead.span.start == 500
    assert lead.span.end == pytest.approx(1000 + 200 * 0.08 / 0.28)


def test_a_slower_n_with_less_reward_does_not_lower_the_curve() -> None:
    curve = look([BASELINE, best_of(2, 0.8, 1200), best_of(4, 0.7, 1600), best_of(16, 1.2, 4000)]).curve
    assert [point.reward for point in climb(curve)] == [0.52, 0.8, 1.2]
    assert reward_at(climb(curve), 2600) == pytest.approx(1.0)
    assert reward_at(climb(curve), 4001) is None
    assert latency_of(climb(curve), 5.0) == 4000


def test_spans_join() -> None:
    assert union([Span(5, 7), Span(1, 3), Span(2, 4)]) == [Span(1, 4), Span(5, 7)]
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert listed(["a (1, 2)", "b"]) == "a (1, 2) and b"


def test_best_of_n_with_steering_is_not_on_the_curve() -> None:
    steered = {"strategy": "best_of_n", "n": 4, "reward": "positivity", "steer": [{"method": "args"}]}
    both = best_of(4, 1.5, 1700).model_copy(update={"setting": "both", "decoding": steered})
    view = look([*CURVE, both])
    assert look([BASELINE, both]).curve == ()
    assert [point.row.setting for point in view.curve] == [BASE, "best_of_n 2", "best_of_n 4", "best_of_n 16"]
    assert [lead.point.row.setting for lead in leads(view)] == ["both"]


def test_one_best_of_one_that_was_measured_stands_for_itself() -> None:
    view = look([*CURVE, best_of(1, 0.5, 1010)])
    assert [point.row.setting for point in view.curve][:2] == ["best_of_n 1", "best_of_n 2"]


def test_gains_that_are_not_certain_are_named() -> None:
    rows = [BASELINE, measured("maybe", 0.55, 900, half=0.1), measured("worse", 0.1, 900, half=0.1)]
    assert "is not certain, its interval includes 0: maybe [" in said(rows)
    assert "whole interval below 0: worse [" in said(rows)
    assert "no interval includes 0" in said([BASELINE, measured("sure", 2.0, 900)])


def test_over_optimisation_is_a_step_up_in_reward_and_down_in_gold() -> None:
    def step(strength: float, reward: float, gold: float) -> Row:
        return measured(f"s {strength}", reward, 900, gold=gold, family="s", strength=strength)

    rows = [BASELINE, step(4, 1.5, 0.1), step(1, 0.8, 0.4), step(2, 1.0, 0.38)]
    small, large = turns(look(rows))
    assert (small.weak.strength, small.strong.strength, small.apart) == (1, 2, False)
    assert (large.weak.strength, large.strong.strength, large.apart) == (2, 4, True)
    assert "gold certainly below: s 4 [" in said(rows)
    fine = [BASELINE, step(1, 0.8, 0.4), step(2, 1.0, 0.5)]
    assert turns(look(fine)) == []
    assert "In no family does gold fall" in said(fine)


def test_estimates_are_named() -> None:
    assert "by order statistics of 16 answers;" in said(CURVE)


def test_the_main_concurrency_is_that_of_most_prompts() -> None:
    rows = [measured("a", 1.0, 10, concurrency=1, prompts=8), measured("a", 1.0, 20, concurrency=4, prompts=40)]
    assert look(rows).concurrency == 4
    assert look([measured("a", 1.0, 10, concurrency=1), measured("a", 1.0, 20, concurrency=4)]).concurrency == 1


# Sparse and hostile rows


def test_one_setting_alone_is_reported(tmp_path: Path) -> None:
    files = write_report([row(BASE, delivered=3.0)], tmp_path)
    assert {file.name for file in files} == {"report.md", "report.html"}
    text = (tmp_path / "report.md").read_text()
    assert text.count("No plot: ") == len(PLOTS)
    assert "1 setting answered" in text
    for each in (text, (tmp_path / "report.html").read_text()):
        assert not re.search(r"\bNone\b|\bnan\b|\binf\b", each)


def test_rows_that_all_failed_are_reported(tmp_path: Path) -> None:
    write_report([row(BASE, error="no such model"), row("a", error="refused")], tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "Failed, and not measured: base and a." in text
    assert "| a | 8 | refused |" in text


def test_without_gold_its_plot_is_left_out_and_the_report_says_why(tmp_path: Path) -> None:
    told = CONDITIONS.model_copy(update={"gold": None})
    bare = [each.model_copy(update={"gold": None, "gold_gain": None, "conditions": told}) for each in many()]
    files = {file.name for file in write_report(bare, tmp_path)}
    assert "gold-proxy.svg" not in files
    assert {"reward-latency.svg", "throughput.svg"} <= files
    text = (tmp_path / "report.md").read_text()
    assert "No plot: it needs a family with two strengths that have a gold reward." in text
    assert "over-optimisation cannot be seen" in text


def test_what_comes_from_rows_is_shown_and_not_run(tmp_path: Path) -> None:
    name, error = '<b onclick="x">$1$ | `a` --> *b*', "</td><script>alert(1)</script>\nsecond | line &amp; [x](y)"
    wide = {"win_rate": Interval(mean=0.5, low=0.4, high=0.6), "kl": Distance(mean=1.0, bound=False)}
    hostile = measured(name, 1.0, 900, gold=0.4, spent={name: 50.0}, **wide)
    told = CONDITIONS.model_copy(update={"reward": name, "model": "<i>m</i>"})
    rows = [BASELINE, hostile, row("<u>", error=error)]
    write_report([each.model_copy(update={"conditions": told}) for each in rows], tmp_path)
    page, text = ((tmp_path / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert not re.findall(r"<(?:script|b |i>|u>)", page)
    tables = Cells(page).tables
    assert tables["Settings that failed"][1] == ["<u>", "8", error]
    assert name in [line[0] for line in tables["What an answer costs"]]
    assert not re.findall(r"(?<!\\)<", text)
    assert of_markdown(text)["Settings that failed"][1] == ["<u>", "8", " ".join(error.split())]
    for file in tmp_path.glob("*.svg"):
        ElementTree.fromstring(file.read_text())


def test_a_gain_without_spread_draws_no_bar(tmp_path: Path) -> None:
    flat = Gain(mean=0.48, low=0.48, high=0.48, improved=1.0)
    rows = [BASELINE, measured("exact", 1.0, 900).model_copy(update={"reward_gain": flat})]
    assert [point.low == point.high for point in look(rows).points] == [True, True]
    assert (tmp_path / "reward-latency.png") in write_report(rows, tmp_path)


# Labels


def test_labels_keep_off_one_another_and_off_the_points() -> None:
    points = [(100 + 11 * (i % 5), 100 + 9 * (i // 5)) for i in range(15)]
    frame = Box(0, 0, 400, 300)
    boxes = place(points, [(40, 8)] * 15, radius=3, lines=[], frame=frame)
    assert all(frame.holds(box) for box in boxes)
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlap(b) > 0]
    assert not [box for box in boxes for x, y in points if box.overlap(Box(x - 2, y - 2, x + 2, y + 2)) > 0]
    assert place(points, [(40, 8)] * 15, radius=3, lines=[], frame=frame) == boxes


def test_a_label_leaves_a_line() -> None:
    (free,) = place([(100, 100)], [(40, 8)], radius=3, lines=[], frame=Box(0, 0, 300, 200))
    line = Line(100, 100, 300, 100)
    (moved,) = place([(100, 100)], [(40, 8)], radius=3, lines=[line], frame=Box(0, 0, 300, 200))
    assert line.inside(free) > 0
    assert line.inside(moved) == 0


@pytest.mark.parametrize(
    ("line", "length"),
    [
        (Line(-5, 5, 15, 5), 10.0),
        (Line(5, -5, 5, 5), 5.0),
        (Line(0, 0, 3, 4), 5.0),
        (Line(-5, 11, 15, 11), 0.0),
        (Line(20, 0, 30, 10), 0.0),
    ],
)
def test_a_line_knows_how_far_it_runs_in_a_box(line: Line, length: float) -> None:
    assert line.inside(Box(0, 0, 10, 10)) == pytest.approx(length)


def test_lines_cross() -> None:
    assert Line(0, 0, 10, 10).crosses(Line(0, 10, 10, 0))
    assert not Line(0, 0, 10, 10).crosses(Line(0, 10, 4, 6))
    assert not Line(0, 0, 10, 10).crosses(Line(0, 0, 10, 0))


def test_a_column_of_names_is_spread() -> None:
    assert spread([10, 50, 90], 9, 0, 100) == [10, 50, 90]
    placed = spread([50, 50, 51, 99, 2], 9, 0, 100)
    ordered = sorted(placed)
    assert all(b - a >= 9 - 1e-9 for a, b in pairwise(ordered))
    assert ordered[0] >= 0
    assert ordered[-1] <= 100
    assert placed[4] < placed[0] < placed[1] < placed[2] < placed[3]


def test_settings_that_are_fast_since_they_say_less_are_named() -> None:
    rows = [measured(BASE, 0.5, 900, delivered=40.0), measured("args", 0.6, 900, delivered=33.0)]
    assert "shorter" not in said(rows)
    assert "plain sampling delivers 40.0 tokens, and much fewer panacea (20.0)." in said(
        [*rows, measured("panacea", 0.6, 500, delivered=20.0)]
    )
