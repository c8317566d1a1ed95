"""The report's style sheet, and the few lines of script that fit its figures to paper."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light; --ink: #1d2733; --muted: #5d6b7a; --line: #dfe4ea; --soft: #f5f7f9; --accent: #c2352b; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff; font: 16px/1.55 Inter, "Segoe UI", "Helvetica Neue", Arial,
  "DejaVu Sans", sans-serif; }
main { max-width: 1280px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { max-width: 34em; margin: 4px 0 16px; font-size: clamp(22px, 2.6vw, 31px); line-height: 1.25; font-weight: 650;
  letter-spacing: -0.01em; text-wrap: balance; }
h2 { margin: 0 0 4px; font-size: 21px; font-weight: 650; letter-spacing: -0.005em; }
section { margin-top: 52px; }
p, ul, dl { max-width: 75ch; }
ul { padding-left: 1.15em; } li { margin: 0.3em 0; }
.study, .facts, .lead, .note { color: var(--muted); }
.study { margin: 0; font-size: 14px; } .study b { color: var(--ink); }
.facts { font-size: 14px; font-variant-numeric: tabular-nums; }
.lead { margin: 0 0 12px; } .note { font-size: 14px; }
.warning { margin: 10px 0; padding: 9px 14px; border-left: 3px solid #d99a1c; background: #fdf6e6; }
code { padding: 1px 5px; background: var(--soft); border-radius: 4px; font-size: 0.9em; overflow-wrap: anywhere; }
figure { margin: 0; } .scroll { overflow-x: auto; }
.pair { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 440px), 1fr)); gap: 16px; }
.pair > * { min-width: 0; }
table { width: 100%; border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; line-height: 1.4; }
th { padding: 8px 12px 8px 0; color: var(--muted); font-weight: 550; text-align: right; white-space: nowrap;
  border-bottom: 1.5px solid var(--ink); vertical-align: bottom; }
td { padding: 8px 12px 8px 0; text-align: right; vertical-align: top; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
td small { display: block; color: var(--muted); font-size: 12px; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
td:nth-child(2) { width: 40%; min-width: 240px; white-space: normal; overflow-wrap: anywhere; }
table.helped td:nth-child(2) { width: 30%; } table.helped thead tr:last-child th { text-align: right; }
table.helped thead th[colspan] { border-bottom: 1px solid var(--line); }
.helped td.missing { text-align: left; white-space: normal; color: var(--muted); }
.slices :is(th, td):last-child { text-align: left; } .slices :is(th, td):nth-child(2) { text-align: right; }
table.slices td:nth-child(2) { width: auto; min-width: 0; }
table.reasons td:nth-child(2) { width: 60%; } .reasons :is(th, td):last-child { min-width: 160px; text-align: left; }
.reasons td:last-child { white-space: normal; }
.tag { margin-left: 4px; padding: 1px 7px; font-size: 12px; border: 1px solid var(--muted); border-radius: 9px; }
.tag.chosen { color: var(--accent); border-color: var(--accent); }
details dl { margin: 8px 0; } summary { cursor: pointer; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 18px; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 640px) { main { padding: 24px 14px; } dl { grid-template-columns: 1fr; } dd { margin-bottom: 6px; } }
@media print {
  @page { margin: 13mm; }
  body { font-size: 10.5pt; } main { max-width: none; padding: 0; }
  section { margin-top: 26px; } h2 { break-after: avoid; } .lead { break-after: avoid; }
  figure, tr, .warning { break-inside: avoid; } .scroll { overflow: visible; }
  .modebar-container { display: none; } .lead { break-inside: avoid; } .pair { grid-template-columns: 1fr 1fr; }
  table { font-size: 8pt; } td, th { padding: 5px 7px 5px 0; } th { white-space: normal; }
  td:nth-child(2) { width: 46%; min-width: 0; } td small, .tag { font-size: 7pt; }
}
"""

# Figures are drawn for the width of the screen. On paper they are scaled down as they are, so that nothing is cut off.
PRINT_SCRIPT = """
const PAPER = 690;
addEventListener('beforeprint', () => document.querySelectorAll('.plot').forEach((plot) => {
  const width = plot.parentElement.classList.contains('pair') ? PAPER / 2 - 8 : PAPER;
  plot.style.width = plot.offsetWidth + 'px';
  plot.style.zoom = Math.min(1, width / plot.offsetWidth);
}));
addEventListener('afterprint', () => document.querySelectorAll('.plot').forEach((plot) => {
  plot.style.width = plot.style.zoom = '';
}));
"""
