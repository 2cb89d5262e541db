// Plots of chosen signals over the last 30 s.

const SPAN_S = 30;
const COLOUR = "#4db4ff";
const FIRST = ["forward m/s", "command age ms", "lateness of control us"];

/** Signals that are no joint's: name to a function of the state. */
const PLAIN = {
  "forward m/s": (s) => s.accepted?.[0],
  "sideways m/s": (s) => s.accepted?.[1],
  "turning rad/s": (s) => s.accepted?.[2],
  "true speed m/s": (s) => s.truth?.speed,
  "true height m": (s) => s.truth?.pos[2],
  "command age ms": (s) => s.ages_ms?.command,
  "target age ms": (s) => s.ages_ms?.target,
  "lateness of control us": (s) => s.control?.late_max_us,
  "clipped share": (s) => s.clipped,
};
const OF_JOINT = {rad: "q", "rad/s": "dq", "N m": "tau"};

export class Plots {
  /** Args: box for the plots; select, the list of signals that can be added. */
  constructor(box, select) {
    this.box = box; this.select = select;
    this.states = []; // of the last 30 s
    this.shown = new Map();
    select.onchange = () => { if (select.value) this.add(select.value); select.selectedIndex = 0; };
  }

  load(joints) {
    this.signals = {...PLAIN};
    joints.forEach((name, i) => {
      for (const [unit, key] of Object.entries(OF_JOINT)) this.signals[`${name} ${unit}`] = (s) => s[key]?.[i];
    });
    this.select.replaceChildren(new Option("add a signal", ""), ...Object.keys(this.signals).map((n) => new Option(n, n)));
    if (!this.shown.size) FIRST.forEach((name) => this.add(name));
  }

  add(name) {
    if (this.shown.has(name)) return;
    const element = document.createElement("div"), canvas = document.createElement("canvas");
    const label = document.createElement("span"), close = document.createElement("button");
    element.className = "plot"; close.textContent = "×"; close.title = "take away";
    close.onclick = () => { element.remove(); this.shown.delete(name); };
    element.append(canvas, label, close);
    this.box.append(element);
    new ResizeObserver(() => { canvas.width = canvas.clientWidth; canvas.height = canvas.clientHeight; }).observe(canvas);
    this.shown.set(name, {canvas, label});
  }

  hear(state) {
    if (state.now_s === undefined) return;
    this.states.push(state);
    while (this.states[0].now_s < state.now_s - SPAN_S) this.states.shift();
    for (const [name, {canvas, label}] of this.shown) this.draw(name, canvas, label, state.now_s);
  }

  draw(name, canvas, label, now) {
    const points = this.states.map((s) => [s.now_s, this.signals[name](s)]).filter(([, v]) => v !== null && v !== undefined);
    const last = points.length ? points.at(-1)[1] : null;
    let [low, high] = [Math.min(0, ...points.map((p) => p[1])), Math.max(0, ...points.map((p) => p[1]))];
    if (high - low < 1e-3) high = low + 1;
    label.textContent = `${name}: ${last ?? "–"}   (${short(low)} to ${short(high)})`;
    const {width, height} = canvas, pen = canvas.getContext("2d"), y = (v) => height - 6 - (height - 30) * (v - low) / (high - low);
    pen.clearRect(0, 0, width, height);
    pen.strokeStyle = "#242e3a"; pen.lineWidth = 1;
    pen.beginPath(); pen.moveTo(0, y(0)); pen.lineTo(width, y(0)); pen.stroke();
    pen.strokeStyle = COLOUR; pen.lineWidth = 1.5; pen.beginPath();
    for (const [t, v] of points) pen.lineTo(width * (1 - (now - t) / SPAN_S), y(v));
    pen.stroke();
  }
}

const short = (v) => Math.abs(v) >= 100 ? v.toFixed(0) : Number(v.toPrecision(2));
