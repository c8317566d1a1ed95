// The policy of `leanrec choose`, as in search/choose/policy.py: which points keep it, and in which order they are
// confirmed. Pure functions of the page's data; an estimate is [value, low, high], null where it is not known.

const LIMIT_ENDS = { estimate: () => 0, bound: (limited) => (limited.at_most ? 2 : 1) };

// What a policy goes by: a point's estimate of this name, or the one that decides in its place.
const decisive = (study, point, name) => point[study.decisive[name] || name];

// The first limit that a point's estimates, or the ends of its intervals, break; null for none.
function brokenLimit(study, policy, point, end) {
  for (const [name, limited] of Object.entries(study.limited)) {
    const limit = policy[name], value = decisive(study, point, name)[end(limited)];
    if (limit === null || limit === undefined) continue;
    if (value === null) return { name, value };
    if ((limited.at_most ? limit - value : value - limit) < 0) return { name, value };
  }
  return null;
}

function keepsSurely(study, policy, point) {
  return brokenLimit(study, policy, point, LIMIT_ENDS.bound) === null && point.loss[2] <= policy.max_loss;
}

const clipped = (value) => Math.min(Math.max(value, 0), 1);

// Coordinates of the hypervolume, each from 0 to 1, more is better.
function unitObjectives(study, policy, point) {
  return [
    clipped(Math.log(decisive(study, point, 'p95_ratio')[0]) / Math.log(study.best.p95_ratio)),
    clipped(Math.log(point.throughput_ratio[0]) / Math.log(study.best.throughput_ratio)),
    clipped(1 - point.loss[0] / policy.max_loss),
  ];
}

// Higher is preferred. The knee is the point nearest to the best of each objective among the points.
function worths(study, policy, points) {
  if (policy.prefer === 'latency') return points.map((point) => -decisive(study, point, 'p95_ratio')[0]);
  if (policy.prefer === 'throughput') return points.map((point) => point.throughput_ratio[0]);
  if (policy.prefer === 'memory') return points.map((point) => -point.model_bytes[0]);
  const units = points.map((point) => unitObjectives(study, policy, point));
  const best = [0, 1, 2].map((axis) => Math.max(...units.map((unit) => unit[axis])));
  const scale = 10 ** study.distance_decimals;
  return units.map((unit) => {
    const [a, b, c] = unit.map((value, axis) => best[axis] - value);
    return -Math.round(Math.sqrt(a * a + b * b + c * c) * scale);
  });
}

// The points of the front that keep the policy, in the order in which they are confirmed: { point, sure }.
function finalists(study, policy) {
  const points = study.records.filter((point) => point.on_front && point.trial !== 0
    && point.loss[0] <= policy.max_loss && brokenLimit(study, policy, point, LIMIT_ENDS.estimate) === null);
  const worth = worths(study, policy, points);
  return points
    .map((point, place) => ({ point, sure: keepsSurely(study, policy, point), worth: worth[place] }))
    .sort((one, other) => (other.sure - one.sure) || (other.worth - one.worth));
}

// The command that confirms the finalists of this policy; options that have their default are left out.
function chooseCommand(study, policy) {
  const options = Object.keys(study.limited)
    .filter((name) => policy[name] !== null && policy[name] !== undefined)
    .map((name) => ` --${name.replace('_', '-')} ${policy[name]}`);
  if (policy.max_loss !== study.max_loss) options.push(` --max-loss ${policy.max_loss}`);
  if (policy.prefer !== study.prefer) options.push(` --prefer ${policy.prefer}`);
  return study.command + options.join('');
}

// Points that cannot be told apart: each leads those that follow it and are not led yet. Map from trial to its leader.
function leaders(points) {
  const led = new Map();
  for (const point of points) {
    if (led.has(point.trial)) continue;
    led.set(point.trial, point.trial);
    for (const other of points) {
      if (!led.has(other.trial) && point.alike.includes(other.trial)) led.set(other.trial, point.trial);
    }
  }
  return led;
}
