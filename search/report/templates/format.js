// Numbers in words, as in search/format.py.

const MISSING = '–';

const grouped = (text) => text.replace(/^-?\d+/, (whole) => whole.replace(/\B(?=(\d{3})+$)/g, ','));

// A tie goes to the even digit, as in Python, where toFixed rounds up. A number is a tie if its exact digits, as toFixed
// gives them, end with a 5 behind the last one that is kept.
function rounded(value, decimals) {
  const text = value.toFixed(decimals);
  if (decimals > 75) return text; // toFixed has at most 100 digits
  const exact = value.toFixed(decimals + 25);
  const tie = /50{24}$/.test(exact) && /[13579]$/.test(text);
  return tie ? exact.slice(0, -25).replace(/\.$/, '') : text;
}

const fixed = (value, decimals) => grouped(rounded(value, decimals));

function significant(value, digits = 2) {
  if (value === 0) return '0';
  const magnitude = Math.floor(Math.log10(Math.abs(value)));
  const text = fixed(value, Math.max(0, digits - 1 - magnitude));
  return text.includes('.') ? text.replace(/0+$/, '').replace(/\.$/, '') : text;
}

const percent = (share) => `${significant(100 * share)}%`;
const times = (ratio) => `${significant(ratio, ratio > 0.1 && ratio < 2 ? 3 : 2)}x`;
const milliseconds = (value) => `${significant(value, 3)} ms`;
const perSecond = (value) => `${fixed(value, 0)}/s`;

function columnRatio(value) {
  return `${value < 1 ? rounded(value, 3) : value < 10 ? rounded(value, 2) : fixed(value, 1)}x`;
}

const columnPercent = (share) => `${rounded(100 * share, 2).replace(/^-(0\.00)$/, '$1')}%`;
const columnMilliseconds = (value) => `${value < 10 ? rounded(value, 3) : fixed(value, 1)} ms`;

function size(count) {
  for (const unit of ['B', 'kB', 'MB']) {
    if (count < 1000) return `${significant(count, 3)} ${unit}`;
    count /= 1000;
  }
  return `${significant(count, 3)} GB`;
}

// How a measure is written, by its name.
const WORDS = {
  p95_ms: columnMilliseconds, p95_ms_with_overhead: columnMilliseconds, p50_ms: columnMilliseconds, p99_ms: columnMilliseconds,
  throughput_rps: perSecond, loss: columnPercent, model_bytes: size,
  memory_mb: (value) => `${significant(value, 3)} MB`, cpu_seconds: (value) => significant(value, 3),
  money: (value) => significant(value, 3),
};

// { text, interval } of an estimate; an interval that is not known is empty.
function told(measure, estimate) {
  const [value, low, high] = estimate, word = WORDS[measure] || columnRatio;
  if (value === null || value === undefined) return { text: MISSING, interval: '' };
  const interval = low === null || low === undefined || low === high && low === value;
  return { text: word(value), interval: interval ? '' : `${word(low)} to ${word(high)}` };
}

const escaped = (text) => String(text).replace(/[&<>]/g, (mark) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;' })[mark]);
