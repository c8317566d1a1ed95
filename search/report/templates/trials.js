// The page's trials, from the columns of its data: one object for each, the same for all views.

const CODES = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_';
const CODE_PLACES = new Map([...CODES].map((code, place) => [code, place]));
const decoded = (codes) => (typeof codes === 'string' ? [...codes].map((code) => CODE_PLACES.get(code)) : codes);

// Rows { trial, standing, reason, place, origin, record, knobs and a value for each measure }. `place`: among the
// measured; `record`: the point in full where it is of the front or a reference.
function readTrials(study) {
  const { numbers, reasons, measured } = study.trials;
  const standings = decoded(study.trials.standings), origins = decoded(study.trials.origins.codes);
  const records = new Map(study.records.map((record) => [record.trial, record]));
  const columns = Object.entries(measured), reasonCodes = study.trials.reason_codes;
  let place = 0, ended = 0;
  return numbers.map((trial, at) => {
    const row = { trial, at, standing: study.trials.standing_names[standings[at]], record: records.get(trial) || null };
    if (standings[at] > 2) return { ...row, place: null, reason: reasons[reasonCodes[ended++]] };
    for (const [name, values] of columns) row[name] = row.record ? row.record[name][0] : values[place];
    row.origin = study.trials.origins.values[origins[place]];
    row.place = place++;
    return row;
  });
}

function readKnobs(study) {
  return study.knobs.map((knob) => ({ ...knob, codes: decoded(knob.codes) }));
}

const knobText = (value) => (
  typeof value === 'boolean' ? (value ? 'True' : 'False')
    : typeof value === 'number' && !Number.isInteger(value) ? significant(value, 3) : String(value));

// The knobs that differ from the baseline's in words, as the console's table has them.
function recipeOf(study, knobs, row) {
  if (row.trial === 0) return 'the model as it was given';
  const families = new Map();
  for (const knob of knobs) {
    const value = knob.values[knob.codes[row.at]];
    if (value === null || value === knob.values[knob.codes[study.baseline_at]]) continue;
    if (study.recipe.left_out.some((start) => knob.name.startsWith(start))) continue;
    const [family, ...rest] = knob.name.split('.');
    const text = `${(rest.join('.') || family).replaceAll('_', ' ')} ${knobText(value)}`;
    families.set(family, [...(families.get(family) || []), text]);
  }
  const parts = [...families].map(([family, texts]) => (study.recipe.prefixes[family] || '') + texts.join(', '));
  return parts.join('; ') || 'as the baseline';
}

// Cells of the table, in the order of the page's columns, as search/report/columns.py has them.
const TABLE_MEASURES = [
  'p95_ms', 'p95_ratio', 'tuned', 'service_p50_ratio', 'throughput_rps', 'throughput_ratio', 'capacity_ratio', 'loss',
  'model_bytes',
];
const ALONE = new Set(['p95_ms', 'throughput_rps', 'model_bytes']);

function cellsOf(row) {
  return TABLE_MEASURES.map((name) => {
    if (name === 'tuned') return told('p95_ratio', [row.record?.tuned?.p95_ratio[0] ?? null, null, null]);
    const estimate = row.record ? row.record[name] : [row[name], null, null];
    return row.trial === 0 || ALONE.has(name) ? told(name, [estimate[0], null, null]) : told(name, estimate);
  });
}
