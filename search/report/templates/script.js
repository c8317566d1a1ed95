// Figures are drawn for the width of the screen. On paper they are scaled down as they are, so that nothing is cut off.
const PAPER = 690;
addEventListener('beforeprint', () => document.querySelectorAll('.plot').forEach((plot) => {
  const width = plot.parentElement.classList.contains('pair') ? PAPER / 2 - 8 : PAPER;
  plot.style.width = plot.offsetWidth + 'px';
  plot.style.zoom = Math.min(1, width / plot.offsetWidth);
}));
addEventListener('afterprint', () => document.querySelectorAll('.plot').forEach((plot) => {
  plot.style.width = plot.style.zoom = '';
}));
