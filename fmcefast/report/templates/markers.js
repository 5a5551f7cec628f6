"use strict";
// CQI and epoch markers, by the same float64 operations in the same order as fmcefast.find_markers. Epochs count from 1.

function smoothLosses(losses, {alpha, smoothing}) {
  const smooth = new Float64Array(losses.length);
  smooth[0] = losses[0];
  for (let m = 1; m < losses.length; m++) {
    const past = smoothing === "literal" ? losses[m - 1] : smooth[m - 1];
    smooth[m] = alpha * past + (1 - alpha) * losses[m];
  }
  return smooth;
}

// The mean absolute change over the last `window` epochs. Sums are of a block and the rest of the block before it, so
// that nothing cancels.
function cqiOf(smooth, window) {
  const cqi = new Float64Array(smooth.length);
  const block = new Float64Array(window + 1), tail = new Float64Array(window + 1);
  cqi[0] = NaN;
  for (let m = 1; m < smooth.length; m++) {
    const position = (m - 1) % window, change = Math.abs(smooth[m] - smooth[m - 1]);
    if (position === 0) {
      let total = 0;
      for (let i = window - 1; i >= 0; i--) {
        total += block[i];
        tail[i] = total;
      }
      block[window] = 0;
    }
    block[position] = change;
    block[window] += change;
    cqi[m] = (tail[position + 1] + block[window]) / Math.min(window, m);
  }
  return cqi;
}

// For each epoch whether the loss has fallen by then: since E0 by more than the part `minDrop` of itself and more than
// its noise, and at one time faster than mu (fmcefast.convergence.criterion).
function fallenBy(losses, smooth, cqi, {mu, window, min_drop: minDrop}) {
  const fallen = new Array(losses.length).fill(minDrop === 0);
  let origin = 0, bends = 0, wasFast = false;
  for (let m = 0; m < losses.length && minDrop > 0; m++) {
    if (losses[m] > losses[origin]) origin = m;
    if (m > 1) bends += Math.abs(losses[m] - losses[m - 1] - (losses[m - 1] - losses[m - 2]));
    wasFast ||= m >= window && cqi[m] > mu;
    const noise = bends / Math.max(m - 1, 1) / Math.sqrt(12 / Math.PI);
    fallen[m] = wasFast && smooth[origin] - smooth[m] > Math.max(minDrop * Math.abs(smooth[origin]), 5 * noise);
  }
  return fallen;
}

// {end, e0, markers, adjusted, lowest, lowestEpoch, problem}; end is 0 and markers is null where there is no convergence,
// problem says why the way to it cannot be divided.
function findMarkers(losses, smooth, cqi, settings) {
  const {phases, mu, window, start} = settings, fallen = fallenBy(losses, smooth, cqi, settings);
  const from = Math.max(start - 1, Math.min(window, losses.length), 1);
  let end = -1, lowest = Infinity, lowestAt = -1;
  for (let m = from; m < losses.length && end < 0; m++) {
    if (cqi[m] < lowest) [lowest, lowestAt] = [cqi[m], m];
    if (cqi[m] <= mu && fallen[m]) end = m;
  }
  const last = end < 0 ? losses.length - 1 : end;
  let origin = 0;
  for (let m = 1; m <= last; m++) if (losses[m] > losses[origin]) origin = m;
  const result = {end: end + 1, e0: origin + 1, markers: null, adjusted: false, lowest, lowestEpoch: lowestAt + 1, problem: ""};
  if (end < 0) return result;
  const originLog = Math.log(smooth[origin]), gap = Math.abs(Math.log(smooth[end]) - originLog);
  if (gap === 0) {
    result.problem = "The smoothed loss is the same at E0 and at convergence: there is nothing to divide.";
  } else if (end - origin < phases) {
    result.problem = `Only ${end - origin} epochs lie between E0 and convergence: too few for ${phases} phases.`;
  }
  if (result.problem) return result;
  const crossings = new Array(phases).fill(end);
  for (let m = origin + 1, k = 1; m <= end && k < phases; m++) {
    const moved = Math.abs(Math.log(smooth[m]) - originLog);
    for (; k < phases && moved >= (k * gap) / phases; k++) crossings[k - 1] = m;
  }
  const spread = spreadApart(crossings);
  result.markers = spread.map((m) => m + 1);
  result.adjusted = spread.some((m, k) => m !== crossings[k]);
  return result;
}

// Equal markers move forward, then back where they pass the last one, which stays.
function spreadApart(crossings) {
  const spread = crossings.slice(), last = crossings.length - 1;
  for (let k = 1; k <= last; k++) spread[k] = Math.max(spread[k], spread[k - 1] + 1);
  return spread.map((m, k) => Math.min(m, crossings[last] - (last - k)));
}
