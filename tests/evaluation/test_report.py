from html.parser import HTMLParser

import pytest

from recbole_dppmg.evaluation.report import model_card, quantizer_table, ranking_table, write_report

ABOUT = {"id": "run-1", "model": "DPPMG", "dataset": "films"}
METRICS = {
    "ranking.test.ndcg@20": 0.2,
    "ranking.test.recall@20": 0.3,
    "ranking.test.ndcg@10": 0.1,
    "ranking.test.map@10": 0.05,
    "ranking.EASE.test.ndcg@10": 0.2,
    "ranking.EASE.test.ndcg@20": 0.25,
    "ranking.EASE.test.recall@20": 0.2,
    "ranking.valid.ndcg@20": 0.9,
    "quantizer.kept.ndcg@20": 0.97,
    **{f"quantizer.text.utilization.{n}": 1 - n / 10 for n in range(3)},
    **{f"quantizer.text.perplexity.{n}": 0.9 - n / 10 for n in range(3)},
    "time.total_s": 90.0,
}


class Page(HTMLParser):
    """Checks that tags close in order; keeps text and the addresses that a browser would open."""

    VOID = ("meta", "img", "br", "polyline", "link", "input")

    def __init__(self, text: str):
        super().__init__()
        self.open, self.text, self.addresses, self.tags = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_ranking_has_the_columns_that_all_have_and_the_best_first():
    columns, rows = ranking_table(METRICS, "DPPMG")
    assert columns == ["ndcg@10", "ndcg@20", "recall@20"]
    assert rows == [("EASE", [0.2, 0.25, 0.2]), ("DPPMG", [0.1, 0.2, 0.3])]


def test_codebooks_by_level():
    assert quantizer_table(METRICS) == [("text", [(1.0, 0.9), (0.9, pytest.approx(0.8)), (0.8, pytest.approx(0.7))])]


def test_a_run_of_any_model_has_a_page(tmp_path):
    history = {"BPR.loss": [(n, 1 / (n + 1)) for n in range(30)]}
    metrics = {"ranking.test.ndcg@20": 0.2, "ranking.BPR.test.ndcg@20": 0.2}
    write_report(tmp_path / "report.html", ABOUT | {"model": "BPR"}, metrics, history)
    page = Page((tmp_path / "report.html").read_text())
    assert "BPR" in page.text and "0.2000" in page.text
    assert page.tags.count("svg") == 1 and page.tags.count("tr") == 2


def test_what_is_untrusted_stays_text(tmp_path):
    hostile = '<script>alert(1)</script>"><img src=http://evil.example/x>'
    write_report(
        tmp_path / "report.html", ABOUT | {"dataset": hostile}, METRICS, {"preference.loss": [(0, 2.0), (1, 1.0)]}
    )
    page = Page((tmp_path / "report.html").read_text())
    assert "script" not in page.tags and page.addresses == []
    assert hostile in "".join(page.text)


def test_a_model_card_has_the_measured_numbers():
    card = model_card(ABOUT, METRICS)
    assert "| EASE | 0.2000 | 0.2500 | 0.2000 |" in card
    assert "- `quantizer.kept.ndcg@20`: 0.97" in card
