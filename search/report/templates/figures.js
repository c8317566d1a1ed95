// Figures are drawn when they come near the window, anew when light turns to dark, and in light colours for paper.

const PAPER_PIXELS = 690;
const THEME = JSON.parse(document.getElementById('theme').textContent);
const DARK_SCHEME = matchMedia('(prefers-color-scheme: dark)');
const LIGHT_COLOUR = new RegExp(
  Object.keys(THEME.dark_for).map((colour) => colour.replace(/[()]/g, '\\$&')).join('|'), 'g');
const figures = new Map(); // by name: { element, describe, options, drawn }
let onPaper = false;

const dark = () => DARK_SCHEME.matches && !onPaper;
const theme = () => (dark() ? THEME.dark : THEME.light);

// A figure that was described in light colours, in those of the theme.
function recoloured(value) {
  if (!dark()) return value;
  if (typeof value === 'string') return value.replace(LIGHT_COLOUR, (colour) => THEME.dark_for[colour]);
  if (Array.isArray(value)) return value.map(recoloured);
  if (value === null || typeof value !== 'object' || ArrayBuffer.isView(value)) return value;
  return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, recoloured(part)]));
}

function draw(figure) {
  const { data, layout } = figure.describe(figure.element);
  const once = !figure.drawn;
  figure.drawn = true;
  const given = [figure.element, data, { autosize: true, ...layout }, THEME.config];
  if (once) Plotly.newPlot(...given);
  else Plotly.react(...given);
  if (once && figure.onDrawn) figure.onDrawn(figure.element);
}

// `describe` gives data and layout in the colours of the theme; `onDrawn` is called once.
function addFigure(name, describe, onDrawn = null) {
  const element = document.getElementById(`${name}-plot`);
  if (element) figures.set(name, { element, describe, onDrawn, drawn: false });
}

function redraw(names = [...figures.keys()]) {
  for (const name of names) if (figures.get(name)?.drawn) draw(figures.get(name));
}

// Tell tests and the browser's profiler how far the page is.
function mark(name, value, what) {
  document.documentElement.dataset[name] = value;
  performance.mark(what);
}

// Figures are drawn when they come near the window, one in each turn, so that the page answers in between.
const awaited = new Set();
const nearing = new IntersectionObserver((seen) => {
  for (const { isIntersecting, target } of seen) {
    if (isIntersecting) awaited.add(target);
    else awaited.delete(target);
  }
  setTimeout(drawNext);
}, { rootMargin: '50% 0px' });

function drawNext() {
  const next = [...figures.values()].find(({ element, drawn }) => !drawn && awaited.has(element));
  if (next) {
    draw(next);
    nearing.unobserve(next.element);
    setTimeout(drawNext);
    return;
  }
  if (!document.documentElement.dataset.drawn) mark('drawn', 'near', 'figures near the window');
  if ([...figures.values()].every(({ drawn }) => drawn)) mark('drawn', 'all', 'all figures');
}

for (const [name, spec] of Object.entries(JSON.parse(document.getElementById('figures').textContent))) {
  addFigure(name, () => recoloured(spec));
}

DARK_SCHEME.addEventListener('change', () => redraw());
addEventListener('beforeprint', () => {
  const recolour = dark();
  onPaper = true;
  for (const figure of figures.values()) if (recolour || !figure.drawn) draw(figure);
  document.querySelectorAll('.plot').forEach((plot) => {
    const width = plot.parentElement.classList.contains('pair') ? PAPER_PIXELS / 2 - 8 : PAPER_PIXELS;
    plot.style.width = `${plot.offsetWidth}px`;
    plot.style.zoom = Math.min(1, width / plot.offsetWidth);
  });
});
addEventListener('afterprint', () => {
  onPaper = false;
  document.querySelectorAll('.plot').forEach((plot) => { plot.style.width = plot.style.zoom = ''; });
  if (dark()) redraw();
});
requestAnimationFrame(() => {
  figures.forEach(({ element }) => nearing.observe(element));
  if (!figures.size) drawNext();
});
