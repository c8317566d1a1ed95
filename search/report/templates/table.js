// The table of trials: filtered, sorted, a page at a time; arrow keys move, Enter or Space selects.

const PAGE_ROWS = 50;
const MOST_ROWS_ON_PAPER = 500;
const RANKS = { front: 0, dominated: 1, infeasible: 2, stopped: 3, failed: 4 };

// Baseline and reference points, then the front: what the policy prefers first, beside it what cannot be told apart.
function frontRows(state) {
  const byTrial = new Map(state.rows.map((row) => [row.trial, row]));
  const members = state.study.records.filter((point) => point.on_front && point.trial !== 0);
  const kept = finalists(state.study, state.policy).map((one) => one.point);
  const rest = members.filter((point) => !kept.includes(point))
    .sort((one, other) => one.p95_ratio[0] - other.p95_ratio[0]);
  const ordered = [...kept, ...rest];
  state.leaders = leaders(ordered);
  const places = new Map(ordered.map((point, place) => [point.trial, place]));
  const grouped = ordered.slice().sort((one, other) => (
    places.get(state.leaders.get(one.trial)) - places.get(state.leaders.get(other.trial))
    || places.get(one.trial) - places.get(other.trial)));
  const references = state.study.records.filter((point) => !members.includes(point));
  return [...references, ...grouped].map((point) => byTrial.get(point.trial));
}

const FILTERS = {
  front: frontRows,
  measured: (state) => state.rows.filter((row) => row.place !== null),
  ended: (state) => state.rows.filter((row) => row.place === null),
  selected: (state) => state.rows.filter((row) => state.selected.has(row.trial)),
  all: (state) => state.rows,
};

// What a column is sorted by; missing values come last.
const SORT_KEYS = [(row) => row.trial, (row) => RANKS[row.standing], ...TABLE_MEASURES.map((name) => (row) => (
  name === 'tuned' ? row.record?.tuned?.p95_ratio[0] ?? null : row[name] ?? null))];

function sorted(rows, sort) {
  if (sort === null) return rows;
  const key = SORT_KEYS[sort.column], sign = sort.descending ? -1 : 1;
  return rows.slice().sort((one, other) => {
    const [a, b] = [key(one), key(other)];
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * (a - b) || one.trial - other.trial;
  });
}

// With a key held, a click adds to the selection.
const addsTo = (event) => event.ctrlKey || event.metaKey || event.shiftKey;

class TrialTable {
  constructor(state, select) {
    Object.assign(this, { state, select, filter: 'front', sort: null, page: 0, active: null, paper: false });
    this.body = document.querySelector('#trials tbody');
    this.head = document.querySelector('#trials thead tr');
    this.addHeader();
    document.getElementById('filter').addEventListener('change', (event) => (
      this.show({ filter: event.target.value, page: 0 })));
    document.getElementById('previous').addEventListener('click', () => this.show({ page: this.page - 1 }));
    document.getElementById('next').addEventListener('click', () => this.show({ page: this.page + 1 }));
    this.body.addEventListener('keydown', (event) => this.onKey(event));
    this.body.addEventListener('click', (event) => this.onClick(event));
    addEventListener('beforeprint', () => this.show({ paper: true }));
    addEventListener('afterprint', () => this.show({ paper: false }));
  }

  addHeader() {
    this.state.study.columns.forEach((name, column) => {
      const button = make('button', { type: 'button', title: `sort by ${name}` }, name);
      button.addEventListener('click', () => {
        const descending = this.sort?.column === column && !this.sort.descending;
        this.show({ sort: { column, descending }, page: 0 });
      });
      this.head.append(make('th', { scope: 'col' }, button));
    });
  }

  show(change = {}) {
    Object.assign(this, change);
    const rows = sorted(FILTERS[this.filter](this.state), this.sort);
    const all = this.paper && rows.length <= MOST_ROWS_ON_PAPER;
    const pages = Math.max(1, Math.ceil(rows.length / PAGE_ROWS));
    this.page = Math.min(Math.max(this.page, 0), pages - 1);
    const first = all ? 0 : this.page * PAGE_ROWS, shown = rows.slice(first, all ? undefined : first + PAGE_ROWS);
    if (!shown.some((row) => row.trial === this.active)) this.active = shown[0]?.trial ?? null;
    this.body.replaceChildren(...shown.map((row) => this.rowElement(row)));
    [...this.head.children].forEach((cell, column) => {
      const mine = this.sort?.column === column;
      cell.setAttribute('aria-sort', mine ? (this.sort.descending ? 'descending' : 'ascending') : 'none');
    });
    document.getElementById('shown').textContent = rows.length
      ? `${first + 1} to ${first + shown.length} of ${fixed(rows.length, 0)}` : 'none';
    document.getElementById('previous').disabled = this.page === 0;
    document.getElementById('next').disabled = this.page >= pages - 1;
  }

  rowElement(row) {
    const { state } = this, leader = this.filter === 'front' ? state.leaders.get(row.trial) : undefined;
    const tags = [...(row.record?.tags || [])];
    if (row.trial === state.recommended) tags.unshift('recommended');
    if (leader !== undefined && leader !== row.trial) tags.push(`≈ ${leader}`);
    if (!row.record) tags.push(row.standing);
    const name = make('td', {}, String(row.trial), ...tags.map((tag) => (
      make('span', { class: ['chosen', 'recommended'].includes(tag) ? 'tag chosen' : 'tag' }, tag))));
    const recipe = make('td', {}, recipeOf(state.study, state.knobs, row));
    const numbers = row.place === null
      ? [make('td', { class: 'missing', colspan: String(TABLE_MEASURES.length) }, row.reason)]
      : cellsOf(row).map(({ text, interval }) => make('td', {}, text, interval ? make('small', {}, interval) : null));
    const chosen = state.selected.has(row.trial);
    return make('tr', { 'data-trial': String(row.trial), tabindex: row.trial === this.active ? '0' : '-1',
      'aria-selected': String(chosen), class: leader !== undefined && leader !== row.trial ? 'alike' : null,
    }, name, recipe, ...numbers);
  }

  onClick(event) {
    const row = event.target.closest('tr');
    if (!row || getSelection().toString()) return;
    this.active = Number(row.dataset.trial);
    this.select(this.active, addsTo(event));
    this.focus();
  }

  focus() {
    this.body.querySelector(`tr[data-trial="${this.active}"]`)?.focus({ preventScroll: false });
  }

  onKey(event) {
    const rows = [...this.body.children], at = rows.findIndex((row) => Number(row.dataset.trial) === this.active);
    const moves = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1 };
    if (event.key in moves) {
      const next = rows[Math.min(Math.max(moves[event.key], 0), rows.length - 1)];
      rows[at]?.setAttribute('tabindex', '-1');
      next.setAttribute('tabindex', '0');
      this.active = Number(next.dataset.trial);
    } else if (event.key === 'PageDown' || event.key === 'PageUp') {
      this.active = null;
      this.show({ page: this.page + (event.key === 'PageDown' ? 1 : -1) });
    } else if (event.key === 'Enter' || event.key === ' ') {
      this.select(this.active, addsTo(event));
    } else if (event.key === 'Escape') this.select(null, false);
    else return;
    event.preventDefault();
    this.focus();
  }
}
