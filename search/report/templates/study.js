// The study's page: one state, and the views that show it. Selecting in one selects in all.

const study = JSON.parse(document.getElementById('study').textContent);
study.baseline_at = study.trials.numbers.indexOf(0);

const form = document.getElementById('policy');
const state = {
  study, rows: readTrials(study), knobs: readKnobs(study), units: 'ratio', policy: readPolicy(study, form).policy,
  recommended: null, selected: new Set(), leaders: new Map(), pairs: [],
};
study.objectives.forEach((one, at) => study.objectives.slice(at + 1).forEach((other) => {
  // Quality is read upwards, so it is never the horizontal axis.
  state.pairs.push(one[0] === 'loss' ? [other, one] : [one, other]);
}));
state.pairs.sort((one, other) => ranked(one) - ranked(other));

function ranked([x, y]) {
  return x[0] === 'p95_ratio' && y[0] === 'loss' ? 0 : 1;
}

const linked = () => [...figures.keys()].filter((name) => name.startsWith('pair-') || name === 'solid');

// Answer, table and card follow at once, the figures when nothing more is typed or selected for a moment.
const PAUSE_MS = 120;
let moving = null;

function showMarked() {
  table.show();
  showSelected();
  clearTimeout(moving);
  moving = setTimeout(() => {
    moving = null;
    moveMarked();
  }, PAUSE_MS);
}

// Show what is recommended and selected in every figure; the marks stay.
function moveMarked() {
  for (const name of linked()) if (figures.get(name).drawn) moveRings(state, figures.get(name).element);
  const parallel = figures.get('knobs');
  if (!parallel?.drawn) return;
  ignoring = true;
  const colours = lineColours(state, measuredRows(state));
  Plotly.restyle(parallel.element, { 'line.color': [colours] }).then(() => { ignoring = false; });
}

let ignoring = false; // while the page itself restyles the uprights

function select(trial, add) {
  if (trial === null) state.selected.clear();
  else if (add) {
    if (!state.selected.delete(trial)) state.selected.add(trial);
  } else {
    const only = state.selected.size === 1 && state.selected.has(trial);
    state.selected.clear();
    if (!only) state.selected.add(trial);
  }
  showMarked();
}

function selectMany(trials) {
  state.selected = new Set(trials);
  showMarked();
}

function showSelected() {
  const bar = document.getElementById('selected'), place = document.getElementById('selected-card');
  bar.hidden = !state.selected.size;
  if (bar.hidden) return;
  const rows = state.rows.filter((row) => state.selected.has(row.trial));
  document.getElementById('selected-name').textContent = rows.length === 1
    ? `Selected: trial ${rows[0].trial}, ${rows[0].standing}` : `Selected: ${rows.length} trials`;
  place.replaceChildren(...(rows.length === 1 ? card(state, rows[0]).filter(Boolean) : [make('p', {},
    `Trials ${rows.slice(0, 40).map((row) => row.trial).join(', ')}${rows.length > 40 ? ' and more' : ''}.`)]));
}

function ask() {
  const { policy, wrong } = readPolicy(study, form);
  showWrong(form, wrong);
  if (Object.keys(wrong).length) return;
  state.policy = policy;
  state.recommended = answer(state);
  table.page = 0;
  showMarked();
}

function addViews() {
  state.pairs.forEach((pair, at) => addFigure(`pair-${at}`, pairFigure(state, pair, at === 0), onPointClick));
  addFigure('solid', solidFigure(state), onPointClick);
  addFigure('knobs', parallelFigure(state), onUprights);
}

function onPointClick(element) {
  element.on('plotly_click', ({ points, event }) => {
    const trial = points.find((point) => point.customdata !== undefined)?.customdata;
    if (trial !== undefined) select(trial, Boolean(event && addsTo(event)));
  });
}

function onUprights(element) {
  const measured = measuredRows(state);
  let under = null;
  element.on('plotly_hover', (event) => { under = event.curveNumber ?? null; });
  element.on('plotly_unhover', () => { under = null; });
  element.addEventListener('click', (event) => {
    if (under !== null && measured[under]) select(measured[under].trial, addsTo(event));
  });
  element.on('plotly_restyle', () => {
    if (!ignoring) selectMany(markedTrials(element, measured) || []);
  });
}

const table = new TrialTable(state, select);
form.addEventListener('input', ask);
form.addEventListener('submit', (event) => event.preventDefault());
form.addEventListener('reset', () => setTimeout(ask));
document.getElementById('units').addEventListener('change', (event) => {
  state.units = event.target.value;
  redraw(linked());
});
document.getElementById('copy').addEventListener('click', (event) => copyCommand(event.target));
document.getElementById('clear').addEventListener('click', () => select(null, false));
// In the order of the page, the study's own figures after the front.
const others = [...figures.entries()];
figures.clear();
addViews();
others.forEach(([name, figure]) => figures.set(name, figure));
ask();
mark('ready', 'true', 'answer');
