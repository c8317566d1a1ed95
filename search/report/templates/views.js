// The measured trials in 2-D for each pair of objectives, in 3-D, and as parallel coordinates. A view shows the page's
// state: { study, rows, knobs, units, policy, recommended, selected }.

// Above so many marks, those off the front are drawn on a canvas.
const MANY_MARKS = 4000;
const MOST_CANVAS_FIGURES = 3; // a browser keeps few canvases of this kind alive
const NARROW_PIXELS = 560;
const LOG_TICKS = [-3, -2, -1, 0, 1, 2, 3].flatMap((power) => [1, 2, 5].map((size) => Number(`${size}e${power}`)));

const measureOf = (state, pair) => pair[state.units === 'own' ? 1 : 0];
// In per cent where it is a loss.
const drawnValue = (name, value) => (value ?? null) && value * (name === 'loss' ? 100 : 1);
const measuredRows = (state) => state.rows.filter((row) => row.place !== null);

function hoverText(state, row) {
  const standing = { front: 'on the front', dominated: 'dominated', infeasible: 'loses too much' }[row.standing];
  const lines = ['p95_ratio', 'throughput_ratio', 'loss'].map((name) => {
    const { text, interval } = told(name, row.record ? row.record[name] : [row[name], null, null]);
    return `${state.study.measures[name].words}: ${text}${interval ? ` [${interval}]` : ''}`;
  });
  const size = told('model_bytes', [row.model_bytes, null, null]).text;
  return [`<b>trial ${row.trial}</b>, ${standing}`, ...lines, `model: ${size}`].join('<br>');
}

function bars(state, rows, name) {
  const ends = rows.map((row) => row.record[name].map((value) => drawnValue(name, value)));
  const reach = (value) => Math.max(0, value || 0); // a bootstrap may put the whole interval to one side
  return {
    type: 'data', symmetric: false, color: theme().bars, thickness: 1.2, width: 3,
    array: ends.map(([value, , high]) => reach(high - value)),
    arrayminus: ends.map(([value, low]) => (low === null ? 0 : reach(value - low))),
  };
}

const shade = (row) => Math.log10(Math.max(row.throughput_ratio || 1, 1e-3));
const symbolOf = (state, row) => state.study.symbols[row.origin] || 'x';

function marks(state, rows, names, look) {
  const axes = ['x', 'y', 'z'].slice(0, names.length);
  return {
    mode: 'markers', hoverinfo: 'text', showlegend: false,
    hovertext: rows.map((row) => hoverText(state, row)), customdata: rows.map((row) => row.trial),
    ...Object.fromEntries(axes.map((axis, at) => [axis, rows.map((row) => drawnValue(names[at], row[names[at]]))])),
    ...look,
  };
}

// Rings around the recommended and the selected trials.
function rings(state, names, type) {
  const { accent, ink } = theme(), measured = measuredRows(state);
  const diamond = type === 'scatter3d' ? 'square-open' : 'diamond-open';
  const ring = (name, chosen, colour, size, symbol) => marks(state, measured.filter(chosen), names, {
    type, name, showlegend: true,
    marker: { symbol, size, color: colour, line: { width: 3, color: colour } },
  });
  return [
    ring('recommended', (row) => row.trial === state.recommended, accent, 24, 'circle-open'),
    ring('selected', (row) => state.selected.has(row.trial), ink, 17, diamond),
  ];
}

// Put the rings and the limits of a figure where the state has them, without drawing its marks anew.
function moveRings(state, element) {
  const first = element.data.findIndex((trace) => trace.name === 'recommended'), { type } = element.data[first];
  const pair = element.pairs.map((one) => measureOf(state, one)), drawn = rings(state, pair, type);
  const keys = ['x', 'y', 'z', 'customdata', 'hovertext'].filter((key) => key in drawn[0]);
  const change = Object.fromEntries(keys.map((key) => [key, drawn.map((ring) => ring[key])]));
  Plotly.update(element, change, type === 'scatter3d' ? {} : { shapes: limitLines(state, pair) }, [first, first + 1]);
}

function layers(state) {
  const measured = measuredRows(state);
  const of = (standing) => measured.filter((row) => row.standing === standing && row.trial !== 0);
  return { infeasible: of('infeasible'), dominated: of('dominated'), front: of('front'),
    baseline: measured.filter((row) => row.trial === 0) };
}

function axisOf(state, name) {
  const measure = state.study.measures[name], { muted, line } = theme();
  const words = name === 'loss' ? `loss of ${escaped(state.study.metric)} in %` : escaped(measure.words);
  const look = { gridcolor: line, linecolor: muted, tickcolor: line, ticks: 'outside', zeroline: name === 'loss',
    zerolinecolor: muted, automargin: true, title: { text: `${words} (${measure.better} is better)`, standoff: 8 } };
  if (!measure.logarithmic) return { ...look, range: state.study.loss_window };
  return { ...look, type: 'log', dtick: 'D2', tickformat: '.3~g' };
}

// A limit of the policy in the units of an axis, which has no overhead; a limited ratio with overhead stands on no axis.
function limitOn(state, name) {
  if (name === 'loss') return 100 * state.policy.max_loss;
  const limit = state.policy[name];
  if (limit === null || limit === undefined || !state.study.decisive[name]) return limit;
  return name === 'p95_ms' && limit > state.study.overhead_ms ? limit - state.study.overhead_ms : null;
}

// Lines of the policy's limits on these axes.
function limitLines(state, names) {
  return names.flatMap((name, at) => {
    const limit = limitOn(state, name);
    if (limit === null || limit === undefined) return [];
    const [along, across] = at ? ['y', 'x'] : ['x', 'y'];
    return [{ type: 'line', [`${along}0`]: limit, [`${along}1`]: limit, [`${across}ref`]: 'paper', [`${across}0`]: 0,
      [`${across}1`]: 1, line: { dash: 'dash', color: theme().accent, width: 1.5 } }];
  });
}

function colourAxis(state, narrow) {
  const shades = state.rows.filter((row) => row.throughput_ratio).map(shade);
  const ends = { cmin: shades.reduce((a, b) => Math.min(a, b), 0), cmax: shades.reduce((a, b) => Math.max(a, b), 0.3) };
  const ticks = LOG_TICKS.filter(
    (step) => Math.log10(step) >= ends.cmin && Math.log10(step) <= ends.cmax);
  const place = narrow ? { orientation: 'h', y: -0.24, yanchor: 'top', len: 1 } : { len: 0.8 };
  return {
    colorscale: theme().palette.map((colour, at, all) => [at / (all.length - 1), colour]), ...ends,
    colorbar: { title: { text: narrow ? 'throughput ratio' : 'throughput<br>ratio' }, outlinewidth: 0, thickness: 12,
      tickvals: ticks.map(Math.log10), ticktext: ticks.map((step) => `${step}x`), ...place },
  };
}

function look() {
  const { paper, ink, muted } = theme();
  return { font: { ...THEME.font, color: ink }, paper_bgcolor: paper, plot_bgcolor: paper,
    hoverlabel: { align: 'left', bgcolor: paper, bordercolor: muted, font: { size: 12, color: ink } } };
}

const BASELINE = { name: 'baseline', showlegend: true };

// Traces of a figure in 2-D: what is off the front is faint, and on a canvas where there is much of it.
function pairTraces(state, names) {
  const { infeasible, dominated, front, baseline } = layers(state), { ink, muted } = theme();
  const many = infeasible.length + dominated.length > MANY_MARKS && state.pairs.length <= MOST_CANVAS_FIGURES;
  const type = many ? 'scattergl' : 'scatter';
  const symbols = (rows, open = '') => rows.map((row) => symbolOf(state, row) + open);
  const filled = (rows, size, other) => (
    { symbol: symbols(rows), size, color: rows.map(shade), coloraxis: 'coloraxis', ...other });
  const [x, y] = names.map((name) => bars(state, front, name));
  return [
    marks(state, infeasible, names, { type, name: 'loses too much', showlegend: infeasible.length > 0,
      marker: { symbol: symbols(infeasible, '-open'), size: 7, color: muted, opacity: 0.45 } }),
    marks(state, dominated, names, { type, marker: filled(dominated, 8, { opacity: 0.3 }) }),
    marks(state, front, names, { type: 'scatter', error_x: x, error_y: y,
      marker: filled(front, 12, { line: { width: 1, color: ink } }) }),
    marks(state, baseline, names, { type: 'scatter', ...BASELINE,
      marker: { symbol: 'cross-thin-open', size: 18, color: ink, line: { width: 2.5, color: ink } } }),
    ...rings(state, names, 'scatter'),
    ...originLegend(state, [...front, ...dominated, ...infeasible]),
  ];
}

function originLegend(state, rows) {
  return [...new Set(rows.map((row) => row.origin))].map((origin) => ({
    type: 'scatter', mode: 'markers', x: [null], y: [null], name: escaped(state.study.origins[origin] || origin),
    marker: { symbol: state.study.symbols[origin] || 'x', size: 10, color: theme().muted },
  }));
}

function pairFigure(state, pairs, first) {
  return (element) => {
    element.pairs = pairs;
    const names = pairs.map((pair) => measureOf(state, pair)), narrow = element.clientWidth < NARROW_PIXELS;
    const [xaxis, yaxis] = names.map((name) => axisOf(state, name));
    const legend = { orientation: 'h', x: 0, y: 1.02, yanchor: 'bottom', itemclick: false, itemdoubleclick: false };
    const layout = {
      ...look(), xaxis, yaxis, legend, showlegend: first, clickmode: 'event', shapes: limitLines(state, names),
      height: first ? 540 : 400, margin: { l: 56, r: 14, t: first ? 64 : 14, b: 52 },
      coloraxis: { ...colourAxis(state, narrow), showscale: first },
    };
    return { data: pairTraces(state, names), layout };
  };
}

function solidAxis(state, name) {
  const { type, title, range } = axisOf(state, name), { ink, line, paper } = theme();
  const ticks = type === 'log' ? { tickvals: LOG_TICKS, ticktext: LOG_TICKS.map(String) } : {};
  const text = title.text.replace(/ \([^(]*$/, '');
  return { type, range, ...ticks, title: { text, font: { size: 12 } }, tickfont: { size: 10 }, gridcolor: line,
    color: ink, backgroundcolor: paper };
}

function solidFigure(state) {
  return (element) => {
    element.pairs = state.study.objectives.slice(0, 3);
    const names = element.pairs.map((pair) => measureOf(state, pair)), { ink, muted } = theme();
    const { infeasible, dominated, front, baseline } = layers(state);
    const small = (rows, size, opacity) => marks(state, rows, names, { type: 'scatter3d',
      marker: { size, opacity, color: rows.map(shade), coloraxis: 'coloraxis', line: { width: 0.5, color: ink } } });
    const ringed = rings(state, names, 'scatter3d').map((ring) => (
      { ...ring, marker: { ...ring.marker, size: ring.marker.size / 2 } }));
    const cross = { type: 'scatter3d', ...BASELINE, marker: { symbol: 'cross', size: 6, color: muted } };
    const data = [small(infeasible, 3, 0.3), small(dominated, 3.5, 0.4), small(front, 6, 1),
      marks(state, baseline, names, cross), ...ringed];
    const [xaxis, yaxis, zaxis] = names.map((name) => solidAxis(state, name));
    const layout = {
      ...look(), height: 400, margin: { l: 0, r: 0, t: 8, b: 8 }, showlegend: false, uirevision: 'kept',
      scene: { xaxis, yaxis, zaxis, camera: { eye: { x: 1.5, y: -1.5, z: 0.9 } } },
      coloraxis: { ...colourAxis(state, true), showscale: false },
    };
    return { data, layout };
  };
}

const lineColour = (state, span) => (row) => {
  if (state.selected.has(row.trial) || row.trial === state.recommended) return 4;
  if (row.standing !== 'front') return row.standing === 'dominated' ? 1 : 0;
  return 2 + (span[1] > span[0] ? (shade(row) - span[0]) / (span[1] - span[0]) : 1);
};

function lineColours(state, measured) {
  const shades = measured.map(shade);
  const span = [shades.reduce((a, b) => Math.min(a, b), Infinity), shades.reduce((a, b) => Math.max(a, b), -Infinity)];
  return measured.map(lineColour(state, span));
}

// Uprights: knobs that differ, then objectives, then how the trial stands.
function uprights(state, measured) {
  const knobs = state.knobs.filter((knob) => knob.axis !== null).map((knob) => ({
    ...knob.axis, values: measured.map((row) => knob.axis.heights[knob.codes[row.at]]),
  }));
  const objectives = Object.entries(state.study.uprights).map(([name, axis]) => ({
    ...axis, values: measured.map((row) => (
      state.study.measures[name].logarithmic ? Math.log10(row[name]) : row[name])),
  }));
  const names = ['infeasible', 'dominated', 'front'];
  const standing = { label: 'standing', places: [0, 1, 2], texts: names, range: [0, 2],
    values: measured.map((row) => names.indexOf(row.standing)) };
  return [...knobs, ...objectives, standing];
}

function parallelFigure(state) {
  return () => {
    const measured = measuredRows(state), { infeasible, dominated, palette, accent, ink } = theme();
    const colorscale = [[0, infeasible], [0.12, infeasible], [0.13, dominated], [0.49, dominated],
      ...palette.map((colour, at) => [0.5 + at / 16, colour]), [0.9, palette[4]], [0.91, accent], [1, accent]];
    const dimensions = uprights(state, measured).map((axis) => ({
      label: axis.label, values: axis.values, range: axis.range, tickvals: axis.places, ticktext: axis.texts }));
    const line = { color: lineColours(state, measured), cmin: 0, cmax: 4, colorscale, showscale: false };
    const data = [{ type: 'parcoords', dimensions, line, labelfont: { size: 10, color: ink },
      tickfont: { size: 10.5, color: ink }, rangefont: { size: 1, color: 'rgba(0,0,0,0)' } }];
    return { data, layout: { ...look(), height: 460, margin: { l: 56, r: 24, t: 72, b: 24 } } };
  };
}

// Trials whose lines pass through every range that was marked on an upright; null where none is marked.
function markedTrials(element, measured) {
  const marked = element.data[0].dimensions.filter((axis) => axis.constraintrange?.length);
  if (!marked.length) return null;
  const passes = (axis, at) => [axis.constraintrange].flat(axis.constraintrange[0] instanceof Array ? 1 : 0)
    .some(([low, high]) => axis.values[at] >= low && axis.values[at] <= high);
  return measured.filter((row, at) => marked.every((axis) => passes(axis, at))).map((row) => row.trial);
}
