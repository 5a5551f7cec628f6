"use strict";
// The loss chart of a run or log: its markers follow the controls for K and mu.

class LossExplorer {
  constructor(root) {
    const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
    Object.assign(this, {root, data, settings: data.settings, losses: decodeNumbers(data.losses)});
    this.window = Math.min(this.settings.window, this.losses.length);
    this.smooth = smoothLosses(this.losses, this.settings);
    this.cqi = cqiOf(this.smooth, this.window);
    this.x = data.places ? decodeNumbers(data.places) : Float64Array.from(this.losses, (_, i) => i + 1);
    this.phases = root.querySelector("[name=phases]");
    this.mu = root.querySelector("[name=mu]");
    this.slider = root.querySelector("[name=mu-slider]");
    const known = this.cqi.filter((value) => value > 0);
    const ends = [known.reduce((a, b) => Math.min(a, b), 1) / 2, known.reduce((a, b) => Math.max(a, b), 1e-12) * 2];
    [this.low, this.high] = [Math.min(ends[0], this.settings.mu), Math.max(ends[1], this.settings.mu)].map(Math.log10);
    root.querySelector(".controls").hidden = false;
    this.phases.addEventListener("input", () => this.show());
    this.mu.addEventListener("input", () => { this.placeSlider(); this.show(); });
    this.slider.addEventListener("input", () => {
      const value = 10 ** (this.low + (this.slider.value / 1000) * (this.high - this.low));
      this.mu.value = Number(value.toPrecision(3)); // what the command below can repeat
      this.show();
    });
    root.querySelector("[name=reset]").addEventListener("click", () => this.reset());
    this.chart = new Chart(root.querySelector(".chart"), {x: this.x, xName: data.axis, panels: this.panels(null)});
    this.reset();
  }

  reset() {
    this.phases.value = this.settings.phases;
    this.mu.value = this.settings.mu;
    this.placeSlider();
    this.show();
  }

  placeSlider() {
    const mu = Number(this.mu.value);
    if (mu > 0) this.slider.value = Math.round((1000 * (Math.log10(mu) - this.low)) / (this.high - this.low));
  }

  show() {
    const [phases, mu] = [Number(this.phases.value), Number(this.mu.value)];
    this.root.querySelector(".phases-value").textContent = phases;
    this.slider.setAttribute("aria-valuetext", `mu ${mu}`);
    const verdict = this.root.querySelector(".verdict");
    if (!(mu > 0)) {
      verdict.textContent = "mu must be greater than 0.";
      return;
    }
    const settings = {...this.settings, phases, mu, window: this.window};
    const found = findMarkers(this.losses, this.smooth, this.cqi, settings);
    const name = this.data.axis, place = (epoch) => this.x[epoch - 1].toLocaleString("en");
    if (found.problem) verdict.textContent = `${found.problem} Choose fewer phases or a smaller mu.`;
    else if (!found.end) {
      verdict.textContent = "Not converged: " + (!found.lowestEpoch ? `no ${name} has a full window of ${this.settings.window}.`
        : found.lowest <= mu ? "the loss has not fallen by more than its noise, or never faster than mu."
        : `the smallest CQI is ${shown(found.lowest)}, at ${name} ${place(found.lowestEpoch)}.`);
    } else {
      verdict.textContent = `Converged at ${name} ${place(found.end)}. E1 to E${phases}: ${found.markers.map(place).join(", ")}`
        + (found.adjusted ? " (spread apart: several steps fell into one)." : ".");
    }
    this.root.querySelector(".command").textContent = `${this.data.command} --phases ${phases} --mu ${this.mu.value}`;
    this.chart.update(this.panels(found, mu));
  }

  panels(found, mu = this.settings.mu) {
    this.lines ??= {
      raw: {name: "loss", y: this.losses, kind: "raw"},
      smooth: {name: "smoothed", y: this.smooth, kind: "smooth"},
      cqi: {name: "CQI", y: this.cqi, kind: "smooth"},
    };
    const dots = [], levels = [];
    if (found?.markers) {
      const log = (epoch) => Math.log(this.smooth[epoch - 1]), [start, end] = [log(found.e0), log(found.end)];
      const count = found.markers.length;
      for (let k = 0; k <= count; k++) levels.push({y: Math.exp(start + ((end - start) * k) / count), kind: "phase"});
      [found.e0, ...found.markers].forEach((epoch, k) => dots.push({i: epoch - 1, y: this.smooth[epoch - 1], name: `E${k}`}));
    }
    const converged = found?.end ? [{i: found.end - 1, y: this.cqi[found.end - 1], name: ""}] : [];
    const panels = [
      {title: "Training loss (log scale)", log: true, lines: [this.lines.raw, this.lines.smooth], levels, dots},
      {title: "CQI (log scale)", log: true, lines: [this.lines.cqi], levels: [{y: mu, name: `mu = ${mu}`, kind: "mu"}], dots: converged},
    ];
    for (const {title, name, values} of this.data.others) {
      this.lines[name] ??= {name, y: decodeNumbers(values), kind: "smooth"};
      const marked = (found?.markers ?? []).map((epoch, k) => ({i: epoch - 1, y: this.lines[name].y[epoch - 1], name: `E${k + 1}`}));
      panels.push({title, lines: [this.lines[name]], dots: marked.filter((dot) => Number.isFinite(dot.y))});
    }
    return panels;
  }
}

document.querySelectorAll(".loss-explorer").forEach((root) => new LossExplorer(root));
