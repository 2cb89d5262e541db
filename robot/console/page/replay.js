// Plays a run of the past in the 3D view, with a time line: fetched by windows, drawn by its own clock.

const $ = (id) => document.getElementById(id);
const AGAIN_MS = 1000; // after a window that could not be had
const MARKS = {MARK: "mark", EPISODE_BEGIN: "begin", EPISODE_END: "end"};

export class Replay {
  /** Args: view, which draws; watch(on), which tells the server and the page that nobody drives here. */
  constructor(view, watch) {
    this.view = view;
    this.watch = watch;
    this.run = null; // facts of the run that is shown; null: the view shows the robot
    $("replay-play").onclick = () => this.play(!this.playing);
    $("replay-close").onclick = () => this.close();
    $("replay-line").oninput = () => this.seek(Number($("replay-line").value));
  }

  get on() { return this.run !== null; }

  /** Show a run. Args: id from the list. Returns why not, or "". */
  async open(id) {
    const answer = await fetch(`/runs/${id}`).catch(() => null);
    if (!answer?.ok) return answer ? (await answer.text()).trim() : "no connection";
    this.run = {id, ...await answer.json()};
    this.windows = new Map(); // number: Float32Array, or null while it is under way
    this.stop = new AbortController();
    this.at = 0; // s
    this.before = undefined;
    this.watch(true);
    $("scene").classList.add("replayed");
    $("replay-name").textContent = this.run.name;
    const line = $("replay-line");
    line.max = this.run.duration_s;
    $("replay-marks").replaceChildren(...this.run.marks.map((mark) => this.flag(mark)));
    this.play(true);
    requestAnimationFrame((now) => this.turn(now));
    return "";
  }

  close() {
    if (!this.on) return;
    this.stop.abort();
    this.run = null;
    $("scene").classList.remove("replayed");
    this.watch(false);
  }

  play(playing) {
    if (playing && this.at >= this.run.duration_s) this.at = 0;
    this.playing = playing;
    $("replay-play").textContent = playing ? "Pause" : "Play";
  }

  seek(seconds) { this.at = Math.max(0, Math.min(this.run.duration_s, seconds)); }

  flag(mark) {
    const button = document.createElement("button");
    button.type = "button"; button.className = MARKS[mark.kind] ?? "mark";
    button.title = `${mark.t_s.toFixed(1)} s, ${button.className}: ${mark.text}`;
    button.style.left = `${100 * mark.t_s / this.run.duration_s}%`;
    button.onclick = () => this.seek(mark.t_s);
    return button;
  }

  turn(now) {
    if (!this.on) return;
    const passed = Math.min(0.25, (now - (this.before ?? now)) / 1000); // a page that was hidden goes on from where it was
    this.before = now;
    const frames = this.window(Math.floor(this.at / this.run.window_s));
    if (this.playing && frames) this.seek(this.at + passed);
    if (this.at >= this.run.duration_s) this.play(false);
    const frame = frames && this.newest(frames);
    if (frame) this.view.show(frame.subarray(2));
    const mode = !frames ? "loading" : frame ? this.run.modes[frame[1]] ?? "" : "nothing was logged here";
    $("replay-time").textContent = `${this.at.toFixed(1)} of ${this.run.duration_s.toFixed(1)} s`;
    $("replay-mode").textContent = mode;
    if (document.activeElement !== $("replay-line") || this.playing) $("replay-line").value = this.at;
    requestAnimationFrame((next) => this.turn(next));
  }

  /** The newest frame of a window at this time, or null. */
  newest(frames) {
    const {stride} = this.run;
    let low = 0, high = frames.length / stride; // frames before `low` are not later than now
    while (low < high) {
      const middle = (low + high) >> 1;
      if (frames[middle * stride] <= this.at) low = middle + 1; else high = middle;
    }
    return low ? frames.subarray((low - 1) * stride, low * stride) : null;
  }

  /** A window's frames, or null while they are fetched; the next one is fetched ahead. */
  window(number) {
    for (const k of [number, number + 1]) if (!this.windows.has(k) && k * this.run.window_s <= this.run.duration_s) this.fetch(k);
    for (const k of this.windows.keys()) if (Math.abs(k - number) > 3) this.windows.delete(k);
    return this.windows.get(number) ?? null;
  }

  async fetch(number) {
    const {run, windows, stop} = this;
    windows.set(number, null);
    try {
      const answer = await fetch(`/runs/${run.id}/frames/${number}`, {signal: stop.signal});
      if (!answer.ok) throw new Error(await answer.text());
      windows.set(number, new Float32Array(await answer.arrayBuffer()));
    } catch {
      setTimeout(() => windows.delete(number), AGAIN_MS);
    }
  }
}
