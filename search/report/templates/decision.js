// The question and its answer: the policy that the form asks for, and the point that `leanrec choose` confirms first.

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== null) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== null));
  return element;
}

// [name, unit or null, whether it is a share of 100] of each number in the form.
const FIELDS = [['p95', true], ['throughput', true], ['loss', false], ['memory', false]];

// { policy, wrong }: the policy of the form, and a sentence by field that is out of its range.
function readPolicy(study, form) {
  const policy = { max_loss: study.max_loss, prefer: form.elements.prefer.value };
  for (const name of Object.keys(study.limited)) policy[name] = null;
  const wrong = {};
  for (const [name, hasUnit] of FIELDS) {
    const input = form.elements[name], text = input.value.trim(), value = Number(text);
    if (text === '' && !input.validity.badInput) continue;
    const share = name === 'loss';
    if (input.validity.badInput || !(value > 0) || !Number.isFinite(value) || (share && value >= 100)) {
      wrong[name] = `must be ${share ? 'between 0 and 100' : 'above 0'}${text ? `, but got ${text}` : ''}`;
    } else if (share) policy.max_loss = Number((value / 100).toPrecision(12));
    else policy[hasUnit ? `${name}_${form.elements[`${name}_unit`].value}` : 'memory_mb'] = value;
  }
  return { policy, wrong };
}

function showWrong(form, wrong) {
  for (const [name] of FIELDS) {
    const said = document.getElementById(`${name}-wrong`);
    form.elements[name].setAttribute('aria-invalid', String(name in wrong));
    said.textContent = wrong[name] || '';
  }
}

function cell(measure, estimate, attributes = {}) {
  const { text, interval } = told(measure, estimate || [null]);
  return make('td', attributes, text, interval ? make('small', {}, interval) : null);
}

// Rows of a card: a name, the measure of the value itself, and the measure of its ratio to a baseline.
const CARD_ROWS = [
  ['p95', 'p95_ms', 'p95_ratio'], ['throughput within the SLO', 'throughput_rps', 'throughput_ratio'],
  ['capacity', null, 'capacity_ratio'], ['service p50', null, 'service_p50_ratio'], ['loss', 'loss', null],
  ['model', 'model_bytes', null], ['peak memory', 'memory_mb', null],
];
// Rows of a study with a time that each request spends elsewhere: the policy goes by those with it.
const OVERHEAD_ROWS = ['p95', 'p50', 'p99'].flatMap((name) => [
  name === 'p95' ? null : [name, `${name}_ms`, `${name}_ratio`],
  [`${name} with overhead`, name === 'p95' ? 'p95_ms_with_overhead' : null, `${name}_ratio_with_overhead`],
]).filter(Boolean);

function cardTable(state, row) {
  const { record } = row, base = state.study.records.find((one) => one.trial === 0);
  const estimates = (name) => (record ? record[name] : [row[name] ?? null, null, null]);
  const speed = (of) => ['p95_ms', 'throughput_rps'].map((name) => told(name, [of[name][0]]).text).join(', ');
  const beside = (heading, of) => (
    make('th', { scope: 'col' }, heading, of ? make('small', {}, speed(of)) : null));
  const tuned = state.study.records.find((one) => one.trial === state.study.tuned_baseline);
  const head = make('tr', {}, make('th', { scope: 'col' }, ''), make('th', { scope: 'col' }, 'this point'),
    beside('of the baseline', base), beside('of the tuned baseline', tuned));
  const [p95, ...others] = CARD_ROWS;
  const rows = state.study.overhead_ms ? [p95, ...OVERHEAD_ROWS, ...others] : CARD_ROWS;
  const body = rows.map(([name, own, ratio]) => make('tr', {},
    make('th', { scope: 'row' }, name === 'loss' ? `loss of ${state.study.metric}` : name),
    own ? cell(own, estimates(own)) : make('td', {}, ''),
    ratio ? cell(ratio, estimates(ratio)) : make('td', {}, ''),
    ratio ? cell(ratio, record?.tuned?.[ratio]) : make('td', {}, '')));
  return make('div', { class: 'scroll' },
    make('table', { class: 'card-numbers' }, make('thead', {}, head), make('tbody', {}, ...body)));
}

// All that is known of one trial.
function card(state, row, heading = `Trial ${row.trial}`) {
  const { record } = row;
  const tags = (record?.tags || []).map((tag) => make('span', { class: tag === 'chosen' ? 'tag chosen' : 'tag' }, tag));
  const title = make('h3', {}, heading, ...tags);
  const recipe = make('p', { class: 'recipe' }, `Recipe: ${recipeOf(state.study, state.knobs, row)}`);
  if (row.place === null) return [title, recipe, make('p', {}, `${row.standing}: ${row.reason}`)];
  const details = Object.entries(record?.details || {}).filter(([, text]) => text);
  const run = record?.run && make('a', { href: record.run, rel: 'noreferrer' }, `Run of trial ${row.trial} in MLflow`);
  const list = make('dl', {}, ...details.flatMap(([name, text]) => [make('dt', {}, name), make('dd', {}, text)]));
  return [title, recipe, cardTable(state, row),
    ...(record?.warnings || []).map((warning) => make('p', { class: 'warning' }, warning)),
    details.length ? make('details', {}, make('summary', {}, 'every choice of this recipe'), list) : null,
    run ? make('p', {}, run) : null];
}

const listed = (texts) => [texts.slice(0, -1).join(', '), texts.at(-1)].filter(Boolean).join(' and ');

// Why no point keeps the policy: limits without which some would.
function nothingKept(state) {
  const names = Object.keys(state.study.limited).filter((name) => state.policy[name] !== null);
  const without = (policy) => finalists(state.study, policy).length;
  const freed = names.map((name) => [state.study.limited[name].words, without({ ...state.policy, [name]: null })]);
  freed.push(['loss', without({ ...state.policy, max_loss: 1 })]);
  const helping = freed.filter(([, count]) => count > 0)
    .map(([words, count]) => `without the limit on ${words}, ${count} would`);
  const members = state.study.records.filter((point) => point.on_front && point.trial !== 0).length;
  if (!members) return 'No candidate is on the front yet.';
  const hint = helping.length ? `; ${listed(helping)}` : ', nor would any with one limit less';
  return `No point of the front keeps all of this${hint}.`;
}

function answerSentences(state, found) {
  const [first, ...others] = found, { point } = first, { study } = state;
  const trials = found.map((one) => one.point.trial), alike = point.alike.filter((trial) => trials.includes(trial));
  const said = [first.sure ? 'Its estimates and their whole intervals keep this policy.'
    : 'Its estimates keep this policy, but not the whole intervals: it may not hold when it is confirmed.'];
  if (alike.length) {
    const noun = alike.length === 1 ? 'trial' : 'trials';
    said.push(`These measurements cannot tell it from ${noun} ${listed(alike.map(String))}.`);
  }
  if (others.length) {
    const order = trials.slice(0, study.most_looks).join(', ');
    said.push(`${found.length} points keep the policy. The command confirms them on test in the order ${order} `
      + 'and takes the first that holds.');
  } else said.push('No other point of the front keeps the policy. The command confirms it on test.');
  return said.map((sentence) => make('p', {}, sentence));
}

// Fill in the answer of a policy; the trial that is recommended, or null.
function answer(state) {
  const place = document.getElementById('answer'), command = document.getElementById('command');
  const found = finalists(state.study, state.policy);
  command.textContent = chooseCommand(state.study, state.policy);
  document.getElementById('command-part').hidden = !found.length;
  if (!found.length) {
    place.replaceChildren(make('h3', {}, 'Nothing to recommend'), make('p', {}, nothingKept(state)));
    return null;
  }
  const { trial } = found[0].point, row = state.rows.find((one) => one.trial === trial);
  const why = `${state.study.preferences[state.policy.prefer]} among those that keep the policy`;
  const shown = card(state, row, `Trial ${trial}: ${why}`).filter(Boolean);
  place.replaceChildren(...shown, ...answerSentences(state, found));
  return trial;
}

async function copyCommand(button) {
  const command = document.getElementById('command');
  try {
    await navigator.clipboard.writeText(command.textContent);
  } catch { // a file's page may not have the clipboard: select, so that the user can copy
    getSelection().selectAllChildren(command);
    button.textContent = 'Selected';
    return;
  }
  button.textContent = 'Copied';
  setTimeout(() => { button.textContent = 'Copy'; }, 2000);
}
