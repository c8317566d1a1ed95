"""Size of a study's page and time until it answers, with many trials.

    python tests/benchmarks/report_page.py [--trials 10000] [--measured 0.25] [--opened 5] [--keep FILE]

A synthetic study with so many trials, of which a share was measured and the others stopped or failed, is written as a
page and opened in headless Chromium several times. Printed: seconds to write it, its size, and the median and the
longest of the milliseconds from the start of the navigation to the answer and the first page of the table, and until
no figure near the window is left to draw; of what each further figure takes from the moment that it is scrolled to,
with others that come near the window then; and of what a changed limit and a selection take until answer and table
show them once all are drawn.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from search.report.report import write_report
from search.results import Front
from tests.conftest import build_document
from tests.report_tests.browsers import opened_browser
from tests.search_tests.documents import read_front

_WAIT = 120_000
_LIMIT = """() => {
  const start = performance.now(), field = document.getElementById('loss');
  field.value = field.value === '0.8' ? '0.9' : '0.8';
  field.dispatchEvent(new Event('input', { bubbles: true }));
  return performance.now() - start;
}"""
_UNDRAWN = "[...figures].filter(([, { drawn }]) => !drawn).map(([name]) => name)"
_DRAW = """async (name) => {
  const start = performance.now(), figure = figures.get(name);
  figure.element.scrollIntoView();
  while (!figure.drawn) await new Promise((done) => setTimeout(done));
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  return performance.now() - start;
}"""
_SELECT = """() => {
  const start = performance.now();
  select(study.records.at(-1).trial, false);
  return performance.now() - start;
}"""


def study(trials: int, measured: float) -> Front:
    """A study of so many trials, a share of them measured; the same for the same arguments."""
    return read_front(build_document(trials, 11, measured))


def opened(path: Path, times: int) -> dict[str, list[float]]:
    """Milliseconds by what was waited for, one value for each time that the page was opened."""
    found: dict[str, list[float]] = {}
    with opened_browser() as browser:
        for _ in range(times):
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.goto(path.as_uri(), wait_until="commit", timeout=_WAIT)
            page.wait_for_function("['near', 'all'].includes(document.documentElement.dataset.drawn)", timeout=_WAIT)
            for name in ("answer", "figures near the window"):
                marked = page.evaluate(f"performance.getEntriesByName('{name}')[0].startTime")
                found.setdefault(name, []).append(marked)
            for name in page.evaluate(_UNDRAWN):
                found.setdefault(f"figure {name}", []).append(page.evaluate(_DRAW, name))
            page.wait_for_function("document.documentElement.dataset.drawn === 'all'", timeout=_WAIT)
            found.setdefault("limit", []).append(page.evaluate(_LIMIT))
            found.setdefault("selection", []).append(page.evaluate(_SELECT))
            page.close()
    return found


def main() -> None:
    """Write, open, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--measured", type=float, default=0.25, help="share of the trials that were measured")
    parser.add_argument("--opened", type=int, default=5, help="times that the page is opened")
    parser.add_argument("--keep", type=Path, help="where to leave the page")
    options = parser.parse_args()
    front = study(options.trials, options.measured)
    with tempfile.TemporaryDirectory() as folder:
        path = (options.keep or Path(folder) / "report.html").resolve()
        start = time.perf_counter()
        write_report(front, path)
        print(f"{len(front.rows)} trials, {len(front.points)} measured, {len(front.members)} on the front")
        print(f"written in {time.perf_counter() - start:.1f} s, {path.stat().st_size / 1e6:.2f} MB")
        for name, values in opened(path, options.opened).items():
            print(f"{name}: median {median(values):.0f} ms, longest {max(values):.0f} ms")


if __name__ == "__main__":
    main()
